"""A bootable disk image from a folder, made without root, loop devices or mounting.

Layout: a BIOS partition table (MBR), GRUB in the gap behind it, and from 1 MiB on one ext4 partition that
holds everything, the kernel too. GRUB's parts need no installation: ``boot.img`` expects its ``core.img`` from
the second sector on, and `grub-mkimage` writes the core's length into it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.packages import run_unpacked
from pytest_vmfest.images.recipes.tools import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECTOR = 512
_MIB = 1024 * 1024
_PARTITION_START = _MIB

# What GRUB 2.06 can read; newer defaults of mke2fs (metadata_csum_seed, orphan_file) it cannot.
_EXT4_FEATURES = "none,has_journal,dir_index,extent,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super,uninit_bg"

_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "boot")


def make_disk(
    disk: Path, root: Path, grub: Grub, *, size_mib: int, command_line: str, owners: Mapping[str, int]
) -> None:
    """Write the raw, sparse image ``disk`` with the tree ``root`` in it, whoever this process is.

    ``root`` must hold ``boot/vmlinuz`` and ``boot/initrd.img``, which GRUB starts with ``command_line``. All
    belongs to the guest's root, but the paths of ``owners`` to the user (and group) of that number.
    """
    write_boot_sectors(disk, grub.core(command_line), grub.boot_sector, size_mib=size_mib)
    make_file_system(disk, root)
    commands = "".join(_own(name, owners.get(name, 0)) for name in _tree(root))
    run(["debugfs", "-w", "-f", "-", _file_system(disk)], timeout_s=120, stdin=commands)


def write_boot_sectors(disk: Path, core: bytes, boot_sector: bytes, *, size_mib: int) -> None:
    """Begin the raw image ``disk``: partition table and boot loader, then a hole of ``size_mib`` MiB in all."""
    gap = _PARTITION_START - _SECTOR
    if len(core) > gap:
        raise ImageBuildError(f"GRUB's core is {len(core)} bytes long, the gap for it {gap}")
    with disk.open("wb") as file:
        file.write(boot_sector[:440].ljust(440, b"\0"))
        file.write(_partition_table(size_mib))
        file.write(core)
        file.truncate(size_mib * _MIB)


def make_file_system(disk: Path, source: Path) -> None:
    """Make the ext4 file system in the partition of ``disk``, filled from the folder ``source``.

    Owners are copied as this process sees them.
    """
    size_kib = (disk.stat().st_size - _PARTITION_START) // 1024
    run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-J", "size=16", "-O", _EXT4_FEATURES,
            "-E", f"offset={_PARTITION_START},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard",
            "-d", source, disk, f"{size_kib}k",
        ],
        timeout_s=600,
    )  # fmt: skip


def _file_system(disk: Path) -> str:
    return f"{disk}?offset={_PARTITION_START}"


def _own(name: str, owner: int) -> str:
    return f'set_inode_field "/{name}" uid {owner}\nset_inode_field "/{name}" gid {owner}\n'


def _tree(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield str((Path(folder) / name).relative_to(root))


def _partition_table(size_mib: int) -> bytes:
    """A disk signature, one active Linux partition up to the end, and the boot signature: bytes 440 to 511."""
    start = _PARTITION_START // _SECTOR
    entry = struct.pack(
        "<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, size_mib * 2048 - start
    )
    return b"vmft\0\0" + entry + b"\0" * 48 + b"\x55\xaa"


class Grub:
    """GRUB for BIOS, from a folder into which ``grub-pc-bin`` and ``grub-common`` were unpacked."""

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
        config = self._tools / "grub.cfg"
        config.write_text(
            f"set root=(hd0,msdos1)\nlinux /boot/vmlinuz {command_line}\ninitrd /boot/initrd.img\nboot\n"
        )
        core = self._tools / "core.img"
        run_unpacked(
            self._tools, "usr/bin/grub-mkimage", "-O", "i386-pc", "-d", self._modules, "-p", "/boot/grub",
            "-c", config, "-o", core, *_GRUB_MODULES, timeout_s=60,
        )  # fmt: skip
        return core.read_bytes()
