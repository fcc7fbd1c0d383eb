"""The smallest Linux that has OpenSSH, from the packages of this host's own distribution.

Debian 12 and newer and Ubuntu 24.04 and newer can build it, as any user. The guest is busybox (its init, its
shell, its tools), the distribution's stock kernel, and OpenSSH's server with the libraries that it needs. All
is laid out for the shortest time from power-on to the first command, also where the CPU is emulated.

Root logs in over SSH by the store's key only; on the console (serial port and screen) without a password.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.apt import PrivateApt
from pytest_vmfest.images.recipes.disk import (
    GRUB_FILES,
    GRUB_PACKAGES,
    Grub,
    make_file_system,
    to_qcow2,
    write_boot_sectors,
)
from pytest_vmfest.images.recipes.host import (
    COMMON_PROGRAMS,
    check_host,
    check_programs,
    distribution,
    os_release,
    require,
    work_folder,
)
from pytest_vmfest.images.recipes.initrd import (
    COMMAND_LINE,
    GUEST,
    MODULES,
    OPTIONAL_MODULES,
    driver_table,
    make_initrd,
)
from pytest_vmfest.images.recipes.kernel import (
    builtin_modules,
    decompress,
    in_order,
    module_name,
    quick_kernel,
    read_modules,
)
from pytest_vmfest.images.recipes.packages import (
    LIBRARIES,
    LOADER,
    UNPACKER_FILES,
    UNPACKER_PACKAGES,
    linked_libraries,
    merged,
    pick,
    unpack,
    unpacker,
)
from pytest_vmfest.images.recipes.tools import run
from pytest_vmfest.images.recipes.tree import Tree
from pytest_vmfest.progress import Step
from pytest_vmfest.specs import DirectBoot, ImageModel, Login

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_vmfest.checks import Check
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity

_TASK = "image tiny"
_DISK_MIB = 1024

_KERNEL_PACKAGES = {"debian": "linux-image-amd64", "ubuntu": "linux-image-virtual"}
_PACKAGES = ("busybox-static", "openssh-server", *UNPACKER_PACKAGES, *GRUB_PACKAGES)

# Dependencies that the guest, or the use of the programs here, does without.
_NOT_NEEDED = (
    "adduser", "coreutils", "debconf", "debconf-2.0", "dmsetup", "dpkg", "gettext-base",
    "init-system-helpers", "initramfs-tools", "kmod", "libpam-modules", "libpam-runtime", "linux-base",
    "linux-firmware", "linux-initramfs-tool", "lsb-base", "openssh-client", "openssh-sftp-server", "passwd",
    "perl", "perl-base", "procps", "runit-helper", "sensible-utils", "sysvinit-utils", "tar", "ucf", "udev",
    "wireless-regdb",
)  # fmt: skip

# Files of the packages that are used at all, at their merged paths.
_WANTED = (
    "usr/bin/busybox", "usr/sbin/sshd", "usr/lib/openssh/sshd-*", "usr/lib64/*", f"{LIBRARIES}/*.so*",
    *UNPACKER_FILES, *GRUB_FILES,
)  # fmt: skip

# The screen's driver: a direct boot leaves the kernel without one. Ubuntu has it in a package of its own.
_SCREENS = {"pci:v00001234d00001111*": ("bochs",)}
_OPTIONAL = OPTIONAL_MODULES | {"bochs"}

_FOLDERS = ("boot", "dev", "etc", "home", "mnt", "proc", "run", "sys", "usr/local", "var/log")
_OWNERS = {"home/user": 1000}


def check() -> list[Check]:
    """The programs of the host that a build uses."""
    return [check_host("tiny"), *check_programs("tiny", COMMON_PROGRAMS | {"debugfs": "e2fsprogs"})]


def build(folder: Path, identity: Identity, progress: Progress) -> ImageModel:
    """Make the image in ``folder``; see `Recipe`."""
    require(check())
    with work_folder(folder) as work:
        apt = PrivateApt(work / "apt", _TASK, progress, without=_NOT_NEEDED)
        apt.update()
        debs = apt.download([_KERNEL_PACKAGES[distribution()], *_PACKAGES])
        progress(Step(_TASK, "unpacking"))
        packages = work / "packages"
        kernel_debs = [deb for deb in debs if re.match(r"linux-\w+-\d", deb.name)]
        unpack((deb for deb in debs if deb not in kernel_debs), packages, _is_wanted)
        kernel, modules = _read_kernel(kernel_debs, packages)
        progress(Step(_TASK, "assembling the guest"))
        tree = Tree(work / "root")
        _add_system(tree, packages, identity)
        _add_screens(tree, modules)
        initrd = make_initrd((packages / "usr/bin/busybox").read_bytes(), modules)
        tree.write("boot/vmlinuz", kernel)
        tree.write("boot/initrd.img", initrd)
        (folder / "initrd.img").write_bytes(initrd)
        (folder / "vmlinux").write_bytes(quick_kernel(kernel, unpacker(packages)))
        progress(Step(_TASK, "writing the disk"))
        raw = work / "disk.raw"
        write_boot_sectors(raw, Grub(packages), size_mib=_DISK_MIB, command_line=COMMAND_LINE)
        make_file_system(raw, tree.root, _OWNERS)
        to_qcow2(raw, folder / "disk.qcow2")
    return ImageModel(
        name="tiny",
        disk=folder / "disk.qcow2",
        format="qcow2",
        login=Login("root", private_key=identity.private_key, host_key=identity.host_public_key),
        os_family="linux",
        os_version=os_release().get("VERSION_ID"),
        os_type="Linux26_64",
        description=f"busybox and OpenSSH from {os_release().get('PRETTY_NAME', 'this host')}",
        hardware="micro",
        direct_boot=DirectBoot(folder / "vmlinux", folder / "initrd.img", COMMAND_LINE),
    )


def _is_wanted(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED)


def _read_kernel(debs: Iterable[Path], packages: Path) -> tuple[bytes, dict[str, bytes]]:
    """The bzImage, and all modules that the guest may load."""
    debs = list(debs)
    unpack_data = unpacker(packages)
    images: list[bytes] = []
    builtin: set[str] = set()

    def is_kernel(path: str) -> bool:
        return path.startswith("boot/vmlinuz-") or fnmatch.fnmatchcase(path, "usr/lib/modules/*/vmlinuz")

    def read(names: frozenset[str]) -> dict[str, bytes]:
        def wanted(path: str) -> bool:
            is_module = ".ko" in path and module_name(path) in names
            return is_module or is_kernel(path) or path.endswith("/modules.builtin")

        found: dict[str, bytes] = {}
        for deb in debs:
            for path, content in pick(deb, wanted).items():
                if is_kernel(path):
                    images[:] = [content]
                elif path.endswith("/modules.builtin"):
                    builtin.update(builtin_modules(content.decode()))
                else:
                    found[module_name(path)] = decompress(content, unpack_data)
        return dict.fromkeys(names & builtin, b"") | found

    screens = [name for names in _SCREENS.values() for name in names]
    modules = read_modules([*MODULES, *screens], read, _OPTIONAL)
    if not images:
        raise ImageBuildError("the kernel packages hold no vmlinuz")
    return images[0], modules


def _add_system(tree: Tree, packages: Path, identity: Identity) -> None:
    """The guest's root file system, without kernel and modules."""
    for name in ("bin", "sbin", "lib", "lib64"):
        tree.folder(f"usr/{name}")
        tree.link(name, f"usr/{name}")
    for name in _FOLDERS:
        tree.folder(name)
    tree.folder("home/user", 0o700)
    tree.folder("root", 0o700)
    tree.folder("root/.ssh", 0o700)
    tree.folder("tmp", 0o1777)
    tree.copy(GUEST / "tiny")
    tree.write("etc/shadow", (GUEST / "tiny/etc/shadow").read_bytes(), 0o600)
    tree.write("etc/hostname", "tiny\n")
    tree.write("etc/os-release", Path("/etc/os-release").read_bytes())
    tree.write("etc/ssh/ssh_host_ed25519_key", identity.host_private_key.rstrip() + "\n", 0o600)
    tree.write("etc/ssh/ssh_host_ed25519_key.pub", identity.host_public_key.rstrip() + "\n")
    tree.write("root/.ssh/authorized_keys", identity.authorized_key.rstrip() + "\n", 0o600)
    _add_busybox(tree, packages)
    _add_sshd(tree, packages)


def _add_busybox(tree: Tree, packages: Path) -> None:
    busybox = packages / "usr/bin/busybox"
    tree.program("usr/bin/busybox", busybox)
    for path in run([busybox, "--list-full"], timeout_s=20).split():
        name = merged(path)
        if name.startswith("usr/") and not (tree.root / name).exists():
            tree.link(name, "/usr/bin/busybox")


def _add_sshd(tree: Tree, packages: Path) -> None:
    """OpenSSH's server: one program in older versions, several in newer ones."""
    tree.link("usr/lib64/ld-linux-x86-64.so.2", f"/{LOADER}")
    parts = sorted(packages.glob("usr/lib/openssh/sshd-*"))
    for program in (packages / "usr/sbin/sshd", *parts):
        for path in (program, packages / LOADER, *linked_libraries(packages, program)):
            tree.program(str(path.relative_to(packages)), path)
    if not parts:
        # It need not execute itself anew for every connection.
        inittab = (tree.root / "etc/inittab").read_text()
        tree.write("etc/inittab", inittab.replace("/sshd -D", "/sshd -r -D"))


def _add_screens(tree: Tree, modules: dict[str, bytes]) -> None:
    names = in_order((name for drivers in _SCREENS.values() for name in drivers), modules)
    tree.write("usr/lib/modules/vmfest/screens", driver_table(_SCREENS, modules))
    for name in names:
        tree.write(f"usr/lib/modules/vmfest/{name}.ko", modules[name])
