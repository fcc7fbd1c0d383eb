"""The smallest Linux that has OpenSSH, from the packages of this host's own distribution.

Debian 12 and newer and Ubuntu 24.04 and newer can build it, as any user. The guest is busybox (its init, its
shell, its tools), the distribution's stock kernel, and OpenSSH's server with the libraries that it needs. All
is laid out for the shortest time from power-on to the first command, also where the CPU is emulated.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.apt import PrivateApt
from pytest_vmfest.images.recipes.cpio import Cpio
from pytest_vmfest.images.recipes.disk import Grub, make_disk
from pytest_vmfest.images.recipes.host import (
    check_host,
    check_programs,
    distribution,
    os_release,
    require,
    work_folder,
)
from pytest_vmfest.images.recipes.kernel import bare_kernel, decompress, in_order, module_name, read_modules
from pytest_vmfest.images.recipes.packages import LIBRARIES, LOADER, linked_libraries, merged, pick, run_unpacked, unpack
from pytest_vmfest.images.recipes.tools import run
from pytest_vmfest.progress import Step
from pytest_vmfest.specs import DirectBoot, ImageModel, Login

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_vmfest.checks import Check
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity

_TASK = "image tiny"
_DISK_MIB = 1024
_GUEST = Path(__file__).parent / "guest/tiny"

_KERNEL_PACKAGES = {"debian": "linux-image-amd64", "ubuntu": "linux-image-virtual"}
_PACKAGES = ("busybox-static", "openssh-server", "grub-common", "grub-pc-bin", "zstd", "lz4")

# Dependencies of these that the guest, or the use of their programs here, does without.
_NOT_NEEDED = (
    "adduser", "coreutils", "debconf", "debconf-2.0", "dmsetup", "dpkg", "gettext-base", "init-system-helpers",
    "initramfs-tools", "kmod", "libpam-modules", "libpam-runtime", "linux-base", "linux-firmware",
    "linux-initramfs-tool", "lsb-base", "openssh-client", "openssh-sftp-server", "passwd", "perl", "perl-base",
    "procps", "runit-helper", "sensible-utils", "sysvinit-utils", "tar", "ucf", "udev", "wireless-regdb",
)  # fmt: skip

# Files of the packages that are used at all, at their merged paths.
_WANTED = (
    "usr/bin/busybox", "usr/sbin/sshd", "usr/lib/openssh/sshd-*", "usr/lib64/*", f"{LIBRARIES}/*.so*",
    "usr/bin/grub-mkimage", "usr/lib/grub/i386-pc/*", "usr/bin/zstd", "usr/bin/lz4",
)  # fmt: skip

# Modules that every guest loads first of all, and those for devices that it finds, by patterns of modaliases.
_ALWAYS = ("crc32c_generic", "ext4", "af_packet", "button", "evdev")
# Gone in newer kernels; not in Ubuntu's package for virtual machines.
_OPTIONAL = frozenset({"crc32c_generic", "bochs"})
_DRIVERS: dict[str, dict[str, tuple[str, ...]]] = {
    "pci": {
        "pci:v00001AF4*": ("virtio_pci",),
        "pci:v00008086d0000100[4EF]*": ("e1000",),
    },
    "virtio": {
        "virtio:d00000001*": ("virtio_net",),
        "virtio:d00000002*": ("virtio_blk",),
        "virtio:d00000003*": ("virtio_console",),
        "virtio:d00000004*": ("virtio_rng",),
        "virtio:d00000008*": ("virtio_scsi", "sd_mod"),
    },
    # Where no virtio disk was found; probing them takes long.
    "disks": {
        "pci:*bc01sc06*": ("ahci", "sd_mod"),
        "pci:v00008086d00007[01]1[01]*": ("ata_piix", "sd_mod"),
    },
    "screens": {
        "pci:v00001234d00001111*": ("bochs",),
    },
}

_MODES = {
    "etc/shadow": 0o600,
    "etc/ssh/ssh_host_ed25519_key": 0o600,
    "home/user": 0o700,
    "root": 0o700,
    "root/.ssh": 0o700,
    "root/.ssh/authorized_keys": 0o600,
    "tmp": 0o1777,
}
_OWNERS = {"home/user": 1000}

# Kernel arguments: the second half saves time where a CPU is emulated.
_COMMAND_LINE = (
    "console=tty0 console=ttyS0 quiet net.ifnames=0 "
    "nokaslr norandmaps mitigations=off noreplace-smp no_timer_check tsc=reliable cryptomgr.notests"
)


def check() -> list[Check]:
    """The programs of the host that a build uses."""
    packages = {
        "apt-get": "apt",
        "dpkg-deb": "dpkg",
        "setpriv": "util-linux",
        "mke2fs": "e2fsprogs",
        "debugfs": "e2fsprogs",
        "qemu-img": "qemu-utils",
    }
    return [check_host("tiny"), *check_programs("tiny", packages)]


def build(folder: Path, identity: Identity, progress: Progress) -> ImageModel:
    """Make the image in ``folder``; see `Recipe`."""
    require(check())
    with work_folder(folder) as work:
        apt = PrivateApt(work / "apt", _TASK, progress, without=_NOT_NEEDED)
        apt.update()
        debs = apt.download([_KERNEL_PACKAGES[distribution()], *_PACKAGES])
        progress(Step(_TASK, "unpacking"))
        tools = work / "packages"
        kernel_debs = [deb for deb in debs if re.match(r"linux-\w+-\d", deb.name)]
        unpack((deb for deb in debs if deb not in kernel_debs), tools, _is_wanted)
        kernel, modules = _kernel(kernel_debs, tools)
        progress(Step(_TASK, "assembling the guest"))
        root = work / "root"
        _make_root(root, tools, identity)
        _make_boot(root, folder, tools, kernel, modules)
        _set_modes(root)
        progress(Step(_TASK, "writing the disk"))
        raw = work / "disk.raw"
        make_disk(raw, root, Grub(tools), size_mib=_DISK_MIB, command_line=_COMMAND_LINE, owners=_OWNERS)
        disk = folder / "disk.qcow2"
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], timeout_s=120)
    return ImageModel(
        name="tiny",
        disk=disk,
        format="qcow2",
        login=Login("root", private_key=identity.private_key, host_key=identity.host_public_key),
        os_family="linux",
        os_version=os_release().get("VERSION_ID"),
        os_type="Linux26_64",
        description=f"busybox and OpenSSH from {os_release().get('PRETTY_NAME', 'this host')}",
        hardware="micro",
        direct_boot=DirectBoot(folder / "vmlinux", folder / "initrd.img", _COMMAND_LINE),
    )


def _is_wanted(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED)


def _kernel(debs: Iterable[Path], tools: Path) -> tuple[bytes, dict[str, bytes]]:
    """The bzImage, and all modules that the guest may load, in an order in which that works."""
    images: list[bytes] = []
    builtin: set[str] = set()

    def is_kernel(path: str) -> bool:
        return path.startswith("boot/vmlinuz-") or fnmatch.fnmatchcase(path, "usr/lib/modules/*/vmlinuz")

    def read(names: frozenset[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}

        def wanted(path: str) -> bool:
            return is_kernel(path) or path.endswith("/modules.builtin") or (".ko" in path and module_name(path) in names)

        for deb in debs:
            for path, content in pick(deb, wanted).items():
                if is_kernel(path):
                    images[:] = [content]
                elif path.endswith("/modules.builtin"):
                    builtin.update(module_name(line) for line in content.decode().splitlines())
                else:
                    found[module_name(path)] = decompress(content, lambda *data: _unpack(tools, *data))
        return found | dict.fromkeys(names & builtin, b"")

    drivers = [name for table in _DRIVERS.values() for names in table.values() for name in names]
    modules = read_modules([*_ALWAYS, *drivers], read, optional=_OPTIONAL)
    if not images:
        raise ImageBuildError("the kernel packages hold no vmlinuz")
    return images[0], modules


def _unpack(tools: Path, program: str, data: bytes) -> bytes:
    """``data`` decompressed by zstd or lz4 from the unpacked packages."""
    packed, plain = tools / "packed", tools / "plain"
    packed.write_bytes(data)
    # lz4 names its output by position, zstd by option.
    output = ("-o", plain) if program == "zstd" else (plain,)
    run_unpacked(tools, f"usr/bin/{program}", "-q", "-f", "-d", packed, *output, timeout_s=60)
    return plain.read_bytes()


def _make_root(root: Path, tools: Path, identity: Identity) -> None:
    """The guest's root file system, without kernel and modules."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in (
        "boot",
        "dev",
        "etc",
        "home/user",
        "mnt",
        "proc",
        "root/.ssh",
        "run",
        "sys",
        "tmp",
        "var/log",
    ):
        (root / name).mkdir(parents=True)
    for name in ("etc", "usr"):
        shutil.copytree(_GUEST / name, root / name, dirs_exist_ok=True)
    _add_busybox(root, tools)
    # Without the server's re-execution of itself a connection costs less; newer versions do it differently.
    flags = "" if (tools / "usr/lib/openssh/sshd-session").exists() else " -r"
    inittab = root / "etc/inittab"
    inittab.write_text(inittab.read_text().replace("/sshd -D -e", f"/sshd -D -e{flags}"))
    (root / "lib64/ld-linux-x86-64.so.2").symlink_to(f"/{LOADER}")
    for program in (tools / "usr/sbin/sshd", *tools.glob("usr/lib/openssh/sshd-*")):
        _add_program(root, tools, program)
    shutil.copyfile("/etc/os-release", root / "etc/os-release")
    for name, text in {
        "etc/hostname": "tiny",
        "etc/ssh/ssh_host_ed25519_key": identity.host_private_key,
        "etc/ssh/ssh_host_ed25519_key.pub": identity.host_public_key,
        "root/.ssh/authorized_keys": identity.authorized_key,
    }.items():
        (root / name).write_text(text.rstrip("\n") + "\n")


def _set_modes(root: Path) -> None:
    """Permissions that do not depend on the umask of this process."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    for name, mode in _MODES.items():
        (root / name).chmod(mode)


def _add_busybox(root: Path, tools: Path) -> None:
    busybox = tools / "usr/bin/busybox"
    shutil.copy(busybox, root / "usr/bin/busybox")
    for path in run([busybox, "--list-full"], timeout_s=20).split():
        place = root / merged(path)
        if not place.exists() and place.parent.is_dir():
            place.symlink_to("/usr/bin/busybox")


def _add_program(root: Path, tools: Path, program: Path) -> None:
    """Copy a program and the libraries that it is linked with."""
    for path in (program, tools / LOADER, *linked_libraries(tools, program).values()):
        place = root / path.relative_to(tools)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def _make_boot(root: Path, folder: Path, tools: Path, kernel: bytes, modules: dict[str, bytes]) -> None:
    """Kernel and initial RAM disk, once for the boot loader and once for direct boot."""
    screens = in_order((name for names in _DRIVERS["screens"].values() for name in names), modules)
    late = root / "usr/lib/modules/vmfest"
    late.mkdir(parents=True)
    (late / "screens").write_text(_table("screens", modules))
    for name in screens:
        (late / f"{name}.ko").write_bytes(modules[name])
    initrd = Cpio()
    initrd.folders("bin", "dev", "modules", "proc", "root", "sys")
    initrd.device("dev/console", 5, 1)
    initrd.file("bin/busybox", (tools / "usr/bin/busybox").read_bytes(), 0o755)
    for name in ("mount", "sh", "switch_root"):
        initrd.link(f"bin/{name}", "busybox")
    initrd.file("init", (_GUEST / "initrd-init").read_bytes(), 0o755)
    initrd.file("modules/always", (" ".join(in_order(_ALWAYS, modules)) + "\n").encode())
    for bus in ("pci", "virtio", "disks"):
        initrd.file(f"modules/{bus}", _table(bus, modules).encode())
    for name, content in modules.items():
        if name not in screens:
            initrd.file(f"modules/{name}.ko", content)
    (root / "boot/vmlinuz").write_bytes(kernel)
    (folder / "vmlinux").write_bytes(bare_kernel(kernel, lambda *data: _unpack(tools, *data)))
    for place in (root / "boot/initrd.img", folder / "initrd.img"):
        place.write_bytes(initrd.finish())


def _table(bus: str, modules: dict[str, bytes]) -> str:
    lines = ((pattern, *in_order(names, modules)) for pattern, names in _DRIVERS[bus].items())
    return "".join(" ".join(line) + "\n" for line in lines)
