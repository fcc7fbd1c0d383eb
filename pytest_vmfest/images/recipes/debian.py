"""What the recipes of Debian have in common; assembled by mmdebstrap, also without root.

It is Debian's own packages and kernel, set up to be reached soon: no timers of its own, services that
nobody waits for start after SSH, the journal is kept in memory, documentation is left out. Passwords are
locked: root logs in by the store's key, and ``user`` is there for ``su`` and may ``sudo``.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.images.recipes.apt import PrivateApt
from pytest_vmfest.images.recipes.disk import (
    GRUB_FILES,
    GRUB_PACKAGES,
    Grub,
    file_system_command,
    to_qcow2,
    write_boot_sectors,
)
from pytest_vmfest.images.recipes.host import (
    COMMON_PROGRAMS,
    check_host,
    check_programs,
    require,
    work_folder,
)
from pytest_vmfest.images.recipes.initrd import COMMAND_LINE, GUEST, MODULES, OPTIONAL_MODULES, make_initrd
from pytest_vmfest.images.recipes.kernel import modules_from_tree, quick_kernel
from pytest_vmfest.images.recipes.packages import UNPACKER_FILES, UNPACKER_PACKAGES, unpack, unpacker
from pytest_vmfest.images.recipes.rootless import check_namespaces, run_as_root
from pytest_vmfest.images.recipes.tree import Tree
from pytest_vmfest.progress import Step
from pytest_vmfest.specs import DirectBoot, ImageModel, Login

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_vmfest.checks import Check
    from pytest_vmfest.images.recipes.apt import Mirrors
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity

_PACKAGES = (
    "busybox-static", "ca-certificates", "dbus", "ifupdown", "iproute2", "iputils-ping", "kmod", "less",
    "netbase", "openssh-server", "procps", "sudo", "systemd-sysv", "udev", "udhcpc",
)  # fmt: skip

# More than half of a plain installation: documentation, and drivers of what no virtual machine has.
_NOT_UNPACKED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*",
    *(
        f"/lib/modules/*/kernel/{folder}/*"
        for folder in (
            "drivers/gpu/drm/amd", "drivers/gpu/drm/i915", "drivers/gpu/drm/nouveau",
            "drivers/gpu/drm/radeon", "drivers/iio", "drivers/infiniband", "drivers/media",
            "drivers/net/wireless", "drivers/staging", "sound",
        )
    ),
)  # fmt: skip

# Not wanted in a machine that lives for one test, or for devices that it does not have.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty-static.service", "ifupdown-pre.service",
    "modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service",
    "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service",
    "proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service",
    "systemd-firstboot.service", "systemd-journal-flush.service", "systemd-pstore.service",
    "systemd-random-seed.service", "systemd-remount-fs.service", "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
)  # fmt: skip

# Needed, but nobody waits for them: they start when SSH answers.
_AFTER_SSH = (
    "dbus.service", "getty@tty1.service", "serial-getty@ttyS0.service", "systemd-logind.service",
    "systemd-user-sessions.service",
)  # fmt: skip


_HOSTS = """\
127.0.0.1\tlocalhost
127.0.1.1\t{name}
::1\tlocalhost ip6-localhost ip6-loopback
"""


@dataclass(frozen=True)
class Debian:
    """One of the guests: what it has beside what all of them have."""

    name: str
    description: str
    suite: str
    sources: Callable[[Mirrors], Sequence[str]]
    """The lines of its ``sources.list``."""
    packages: tuple[str, ...]
    """A kernel image, and what else is to be installed."""
    os_type: str
    os_version: str | None = None
    hardware: str = "small"
    disk_mib: int = 8192
    apt_options: tuple[str, ...] = ()
    not_unpacked: tuple[str, ...] = ()
    """Patterns of the packages' files that are left out."""
    hooks: tuple[str, ...] = ()
    """Shell commands run by root at the end, with the guest's root folder for ``$1``."""
    masked: tuple[str, ...] = ()
    """Units of systemd that it does not need."""
    absent_modules: frozenset[str] = frozenset()
    """Kernel modules for other hypervisors' devices that its kernel package does not have."""
    command_line: str = COMMAND_LINE

    def check(self) -> list[Check]:
        """The programs of the host that a build uses, and whether this user may use them so."""
        programs = COMMON_PROGRAMS | {"mmdebstrap": "mmdebstrap", "unshare": "util-linux"}
        return [
            check_host(self.name),
            *check_programs(self.name, programs),
            check_namespaces(self.name),
        ]

    def build(self, folder: Path, identity: Identity, progress: Progress) -> ImageModel:
        """Make the image in ``folder``; see `Recipe`."""
        require(self.check())
        task = f"image {self.name}"
        with work_folder(folder) as work:
            apt = PrivateApt(work / "apt", task, progress, without=("dmsetup", "debconf", "gettext-base"))
            apt.update()
            mirrors = apt.mirrors()
            packages = work / "packages"
            unpack(apt.download((*GRUB_PACKAGES, *UNPACKER_PACKAGES)), packages, _is_wanted)
            root = work / "root"
            self._install(root, mirrors, work, progress)
            progress(Step(task, "setting up the guest"))
            tree = Tree(root)
            self._set_up(tree, identity)
            self._add_boot_files(tree, folder, packages)
            progress(Step(task, "writing the disk"))
            raw = work / "disk.raw"
            write_boot_sectors(raw, Grub(packages), size_mib=self.disk_mib, command_line=self.command_line)
            run_as_root(file_system_command(raw, root), timeout_s=600)
            to_qcow2(raw, folder / "disk.qcow2")
        return ImageModel(
            name=self.name,
            disk=folder / "disk.qcow2",
            format="qcow2",
            login=Login("root", private_key=identity.private_key, host_key=identity.host_public_key),
            os_family="debian",
            os_version=self.os_version,
            os_type=self.os_type,
            packager="apt",
            description=self.description,
            hardware=self.hardware,
            direct_boot=DirectBoot(folder / "vmlinux", folder / "initrd.img", self.command_line),
        )

    def _install(self, root: Path, mirrors: Mirrors, work: Path, progress: Progress) -> None:
        """Debian's packages, with the owners that root sees in a user namespace."""
        task = f"image {self.name}"
        temporary = work / "tmp"
        temporary.mkdir()
        progress(Step(task, "installing Debian"))
        run_as_root(
            [
                "mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase",
                "--skip=chroot/mount/sys", f"--include={','.join((*_PACKAGES, *self.packages))}",
                *(f"--aptopt={option}" for option in self.apt_options),
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in (*_NOT_UNPACKED, *self.not_unpacked)),
                '--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --groups sudo user',
                *(f"--customize-hook={hook}" for hook in self.hooks),
                self.suite, root, *self.sources(mirrors),
            ],
            timeout_s=1800,
            # The kernel package's hook would make an initial RAM disk that nobody starts.
            environment={"TMPDIR": str(temporary), "INITRD": "No"},
            watch=lambda text: progress(Step(task, _last_news(text))),
        )  # fmt: skip

    def _set_up(self, tree: Tree, identity: Identity) -> None:
        """The files that make a general Debian into this guest."""
        for key in tree.root.glob("etc/ssh/ssh_host_*"):
            key.unlink()
        shutil.rmtree(tree.root / "var/log/journal", ignore_errors=True)
        tree.copy(GUEST / "debian")
        tree.copy(GUEST / self.name)
        tree.write("etc/sudoers.d/vmfest", (GUEST / "debian/etc/sudoers.d/vmfest").read_bytes(), 0o440)
        tree.write("etc/hostname", f"{self.name}\n")
        tree.write("etc/hosts", _HOSTS.format(name=self.name))
        tree.write("etc/machine-id", "")
        tree.write("etc/resolv.conf", "")  # udhcpc's script writes it
        tree.write("etc/ssh/ssh_host_ed25519_key", identity.host_private_key.rstrip() + "\n", 0o600)
        tree.write("etc/ssh/ssh_host_ed25519_key.pub", identity.host_public_key.rstrip() + "\n")
        tree.folder("root/.ssh", 0o700)
        tree.write("root/.ssh/authorized_keys", identity.authorized_key.rstrip() + "\n", 0o600)
        for unit in ("screen.service", "way-out.service"):
            tree.link(f"etc/systemd/system/multi-user.target.wants/{unit}", f"../{unit}")
        for unit in (*_MASKED, *self.masked):
            tree.link(f"etc/systemd/system/{unit}", "/dev/null")
        for unit in _AFTER_SSH:
            tree.write(f"etc/systemd/system/{unit}.d/after-ssh.conf", "[Unit]\nAfter=ssh.service\n")
        for name in ("etc/.updated", "var/.updated"):
            tree.write(name, "")  # newer than /usr: nothing is to be brought up to date at the first boot

    def _add_boot_files(self, tree: Tree, folder: Path, packages: Path) -> None:
        """Kernel and initial RAM disk under names that an upgrade in the guest leaves alone."""
        kernel = next(tree.root.glob("boot/vmlinuz-*")).read_bytes()
        busybox = (tree.root / "usr/bin/busybox").read_bytes()
        unpack_data = unpacker(packages)
        optional = OPTIONAL_MODULES | self.absent_modules
        initrd = make_initrd(busybox, modules_from_tree(tree.root, MODULES, optional, unpack_data))
        tree.write("boot/vmlinuz", kernel)
        tree.write("boot/initrd.img", initrd)
        (folder / "initrd.img").write_bytes(initrd)
        (folder / "vmlinux").write_bytes(quick_kernel(kernel, unpack_data))


def _is_wanted(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in (*GRUB_FILES, *UNPACKER_FILES))


def _last_news(text: str) -> str:
    r"""What mmdebstrap said last about what it does.

    >>> _last_news("I: running apt-get update...\nI: extracting archives...\nUnpacking …\n")
    'extracting archives'
    """
    news = re.findall(r"^I: (.*?)(?:\.\.\.|: .*)?$", text, re.MULTILINE)
    return news[-1] if news else "installing Debian"
