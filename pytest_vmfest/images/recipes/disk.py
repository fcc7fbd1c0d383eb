"""A bootable disk image from a folder, made without root, loop devices or mounting.

Layout: a BIOS partition table (MBR), GRUB in the gap behind it, and from 1 MiB on one ext4 partition that
holds everything, the kernel too. GRUB's parts need no installation: ``boot.img`` expects its ``core.img``
from the second sector on, and grub-mkimage writes the core's length into it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.packages import LIBRARIES, run_unpacked
from pytest_vmfest.images.recipes.tools import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Packages that `Grub` needs unpacked, and which of their files.
GRUB_PACKAGES = ("grub-common", "grub-pc-bin")
GRUB_FILES = ("usr/bin/grub-mkimage", "usr/lib/grub/i386-pc/*", f"{LIBRARIES}/*.so*")

_SECTOR = 512
_MIB = 1024 * 1024
PARTITION_START = _MIB

# What GRUB 2.06 can read; newer defaults of mke2fs (metadata_csum_seed, orphan_file) it cannot.
_EXT4_FEATURES = ",".join(
    (
        "none", "has_journal", "dir_index", "extent", "extra_isize", "filetype", "flex_bg", "huge_file",
        "large_file", "sparse_super", "uninit_bg",
    )
)  # fmt: skip

_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "boot")


class Grub:
    """GRUB for BIOS, from a folder into which `GRUB_FILES` of `GRUB_PACKAGES` were unpacked."""

    def __init__(self, tools: Path) -> None:
        """Use the files below ``tools``."""
        self._tools = tools
        self._modules = tools / "usr/lib/grub/i386-pc"

    @property
    def boot_sector(self) -> bytes:
        """The code that the firmware starts; it loads the core."""
        return (self._modules / "boot.img").read_bytes()

    def core(self, command_line: str) -> bytes:
        """GRUB itself, with what it is to do built in: no menu, no configuration file, no waiting."""
        config, core = self._tools / "grub.cfg", self._tools / "core.img"
        config.write_text(
            "set root=(hd0,msdos1)\n"
            f"linux /boot/vmlinuz {command_line}\n"
            "initrd /boot/initrd.img\n"
            "boot\n"
        )  # fmt: skip
        run_unpacked(
            self._tools, "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", self._modules, "-p", "/boot/grub",
            "-c", config, "-o", core, *_GRUB_MODULES, timeout_s=60,
        )  # fmt: skip
        return core.read_bytes()


def write_boot_sectors(disk: Path, grub: Grub, *, size_mib: int, command_line: str) -> None:
    """Begin the raw, sparse image ``disk`` of ``size_mib`` MiB: partition table and boot loader.

    GRUB will start ``boot/vmlinuz`` and ``boot/initrd.img`` of the file system with ``command_line``.
    """
    core = grub.core(command_line)
    gap = PARTITION_START - _SECTOR
    if len(core) > gap:
        raise ImageBuildError(f"GRUB's core is {len(core)} bytes long, the gap for it {gap}")
    with disk.open("wb") as file:
        file.write(grub.boot_sector[:440].ljust(440, b"\0"))
        file.write(_partition_table(size_mib))
        file.write(core)
        file.truncate(size_mib * _MIB)


def file_system_command(disk: Path, source: Path) -> list[str | Path]:
    """The command that makes the file system of ``disk`` and fills it from the folder ``source``.

    It keeps owners as it sees them.
    """
    size_kib = (disk.stat().st_size - PARTITION_START) // 1024
    # A guest that finds everything initialized writes nothing in the background.
    options = f"offset={PARTITION_START},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard"
    return [
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "32768", "-m", "1", "-J", "size=16",
        "-O", _EXT4_FEATURES, "-E", options, "-d", source, disk, f"{size_kib}k",
    ]  # fmt: skip


def make_file_system(disk: Path, root: Path, owners: Mapping[str, int]) -> None:
    """Make the file system from a folder all of whose files are this user's.

    In it they are the guest's root's, but the paths of ``owners`` those of the user and group of that number.
    """
    run(file_system_command(disk, root), timeout_s=300)
    commands = "".join(_own(name, owners.get(name, 0)) for name in _names(root))
    run(["debugfs", "-w", "-f", "-", f"{disk}?offset={PARTITION_START}"], timeout_s=120, stdin=commands)


def to_qcow2(raw: Path, disk: Path) -> None:
    """Convert a raw image, leaving out what is zero."""
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], timeout_s=600)


def _own(name: str, owner: int) -> str:
    return f'set_inode_field "/{name}" uid {owner}\nset_inode_field "/{name}" gid {owner}\n'


def _names(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield str((Path(folder) / name).relative_to(root))


def _partition_table(size_mib: int) -> bytes:
    """Bytes 440 to 511: a disk signature, one active Linux partition up to the end, the boot signature."""
    start = PARTITION_START // _SECTOR
    sectors = size_mib * _MIB // _SECTOR - start
    no_chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, no_chs, 0x83, no_chs, start, sectors)
    return b"vmft\0\0" + entry + b"\0" * 48 + b"\x55\xaa"
