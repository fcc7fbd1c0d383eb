"""What the first bytes of a disk image say: its size, and how long its file has to be for that.

Sources: QEMU's ``docs/interop/qcow2.txt``, VirtualBox's ``VDICore.h``, VMware's "Virtual Disk Format 5.0".
Reading headers ourselves finds what ``qemu-img check`` lets pass (a VDI that is truncated), works where QEMU
is not installed, and sees a reference to another file before any tool would follow it.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTOR = 512
_NO_HINT = ""
# More than any real disk of 64 TiB has: a damaged header must not make us read gigabytes.
_MAX_TABLE_BYTES = 64 << 20


class Refusal(Exception):  # noqa: N818 - an answer to our caller, which makes an ImageInvalidError of it
    """Why a file is not taken as a disk image, and what can be done about it."""

    def __init__(self, reason: str, hint: str = _NO_HINT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Layout:
    """``virtual_bytes`` is the guest's disk size; a file shorter than ``end_bytes`` is truncated."""

    virtual_bytes: int
    end_bytes: int


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset``; `Refusal` if the file ends before."""
    if length > _MAX_TABLE_BYTES:
        raise Refusal(f"its header is damaged (it speaks of a table of {length} bytes)")
    there = _length(file)
    if offset + length > there:
        raise Refusal(f"it is truncated: {offset + length} bytes are needed, {there} are there")
    file.seek(offset)
    return file.read(length)


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _numbers(data: bytes, typecode: str, order: str) -> array[int]:
    numbers = array(typecode, data)
    if order != sys.byteorder:
        numbers.byteswap()
    return numbers


# --- qcow2 ---------------------------------------------------------------------------------------------

QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_OFFSET = 0x00FF_FFFF_FFFF_FE00
_QCOW2_COMPRESSED = 1 << 62
_FLATTEN = "make it one file first: qemu-img convert -O qcow2 THIS FLAT.qcow2, then add FLAT.qcow2"


def read_qcow2(file: BinaryIO) -> Layout:
    """The layout of a qcow2 image that stands alone."""
    head = read_at(file, 0, 72)
    version, backing_offset = struct.unpack_from(">IQ", head, 4)
    cluster_bits, size, encryption, l1_entries, l1_offset = struct.unpack_from(">IQIIQ", head, 20)
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or not size:
        raise Refusal(f"its qcow2 header is damaged (version {version}, size {size})")
    features = struct.unpack(">Q", read_at(file, 72, 8))[0] if version == 3 else 0
    if backing_offset:
        raise Refusal("it holds only the differences to another image (a backing file)", _FLATTEN)
    if features & 4:
        raise Refusal("it keeps its data in another file", _FLATTEN)
    if encryption:
        raise Refusal("it is encrypted", _FLATTEN)
    if features & 2:
        raise Refusal("it is marked as corrupt", "repair it with: qemu-img check -r all THIS")
    l1 = _numbers(read_at(file, l1_offset, l1_entries * 8), "Q", "big")
    entry_words = 2 if features & 16 else 1
    compressed_mask = (1 << (62 - (cluster_bits - 8))) - 1
    end = l1_offset + l1_entries * 8
    for offset in filter(None, (entry & _QCOW2_OFFSET for entry in l1)):
        table = _numbers(read_at(file, offset, 1 << cluster_bits), "Q", "big")[::entry_words]
        last = max(e & (compressed_mask if e & _QCOW2_COMPRESSED else _QCOW2_OFFSET) for e in table)
        # QEMU may leave the last cluster short, so only its first byte can be asked for.
        end = max(end, offset + (1 << cluster_bits), last + 1)
    return Layout(size, end)


# --- VDI -----------------------------------------------------------------------------------------------

VDI_SIGNATURE = struct.pack("<I", 0xBEDA107F)
VDI_SIGNATURE_OFFSET = 0x40
_VDI_DYNAMIC, _VDI_FIXED = 1, 2


def read_vdi(file: BinaryIO) -> Layout:
    """The layout of a VDI image that stands alone."""
    head = read_at(file, 0, 0x200)
    version, _header_bytes, kind = struct.unpack_from("<III", head, 0x44)
    map_offset, data_offset = struct.unpack_from("<II", head, 0x154)
    size, block_bytes, block_extra, blocks, allocated = struct.unpack_from("<QIIII", head, 0x170)
    if version >> 16 != 1:
        raise Refusal(f"its VDI version {version >> 16}.{version & 0xFFFF} is not known")
    if not size or not block_bytes or blocks * block_bytes < size or allocated > blocks:
        raise Refusal("its VDI header is damaged")
    if kind not in (_VDI_DYNAMIC, _VDI_FIXED):
        raise Refusal(
            "it holds only the differences to another image (a VirtualBox snapshot)",
            "make it one file first: VBoxManage clonemedium disk THIS FLAT.vdi, then add FLAT.vdi",
        )
    end = max(map_offset + 4 * blocks, data_offset + allocated * (block_bytes + block_extra))
    return Layout(size, end)


# --- VMDK ----------------------------------------------------------------------------------------------

VMDK_MAGIC = b"KDMV"
VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
_VMDK_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_VMDK_COMPRESSED = 1 << 16
_VMDK_SINGLE = ("monolithicSparse", "streamOptimized")
_VMDK_ONE_FILE = (
    "make it one file first, with all its parts in one folder: "
    "qemu-img convert -O qcow2 THIS FLAT.qcow2, then add FLAT.qcow2"
)


def refuse_vmdk_descriptor(file: BinaryIO) -> Layout:
    """Refuse a VMDK that is only a text naming other files."""
    kind = _descriptor_value(file.read(20 << 10), "createType") or "unknown kind"
    raise Refusal(f"it is only a VMDK description ({kind}); its data are in other files", _VMDK_ONE_FILE)


def read_vmdk(file: BinaryIO) -> Layout:
    """The layout of a VMDK of one file (monolithicSparse or streamOptimized)."""
    head = read_at(file, 0, SECTOR)
    flags, sectors, grain_sectors, text_at, text_sectors, per_table = struct.unpack_from("<IQQQQI", head, 8)
    directory_at = struct.unpack_from("<Q", head, 56)[0]
    if not sectors or not grain_sectors or not per_table:
        raise Refusal("its VMDK header is damaged")
    _check_descriptor(read_at(file, text_at * SECTOR, text_sectors * SECTOR) if text_at else b"")
    end = 0
    if directory_at == _VMDK_AT_END:
        directory_at, end = _vmdk_footer(file)
    tables = -(-sectors // (grain_sectors * per_table))
    directory = _numbers(read_at(file, directory_at * SECTOR, tables * 4), "I", "little")
    last = 0
    for table_at in filter(None, directory):
        table = read_at(file, table_at * SECTOR, per_table * 4)
        end = max(end, table_at * SECTOR + len(table))
        last = max(last, *_numbers(table, "I", "little"))
    # Entry 1 means "zeros", 0 "nothing here".
    if last > 1:
        length = grain_sectors * SECTOR
        if flags & _VMDK_COMPRESSED:
            length = 12 + struct.unpack("<I", read_at(file, last * SECTOR + 8, 4))[0]
        end = max(end, last * SECTOR + length)
    return Layout(sectors * SECTOR, end)


def _vmdk_footer(file: BinaryIO) -> tuple[int, int]:
    """Where a streamed VMDK's directory is: a copy of the header stands in the last sector but one."""
    length = _length(file)
    footer = read_at(file, max(0, length - 2 * SECTOR), SECTOR)
    directory_at = struct.unpack_from("<Q", footer, 56)[0]
    if footer[:4] != VMDK_MAGIC or directory_at == _VMDK_AT_END:
        raise Refusal(f"it is truncated: the footer of a streamed VMDK is missing after {length} bytes")
    return directory_at, length


def _check_descriptor(text: bytes) -> None:
    kind = _descriptor_value(text, "createType")
    if kind is None:
        raise Refusal("it is one part of a VMDK of several files", _VMDK_ONE_FILE)
    if kind not in _VMDK_SINGLE:
        raise Refusal(f"it is a VMDK of the kind {kind}, which needs other files", _VMDK_ONE_FILE)
    if (_descriptor_value(text, "parentCID") or "ffffffff").lower() != "ffffffff":
        raise Refusal("it holds only the differences to another image (a VMDK with a parent)", _VMDK_ONE_FILE)


def _descriptor_value(text: bytes, key: str) -> str | None:
    found = re.search(rf'^\s*{key}\s*=\s*"?([^"\r\n]*?)"?\s*$'.encode(), text, re.MULTILINE)
    return found[1].decode("ascii", "replace") if found else None


# --- raw -----------------------------------------------------------------------------------------------

_RAW_HINT = (
    "is it a disk at all? If so, say it with its format: "
    "qemu-img convert -f raw -O qcow2 THIS DISK.qcow2, then add DISK.qcow2"
)


def read_raw(file: BinaryIO) -> Layout:
    """The layout of a raw disk, which only its content can vouch for: partitions or a file system."""
    length = _length(file)
    if length % SECTOR:
        raise Refusal(f"its {length} bytes are not a whole number of {SECTOR}-byte sectors", _RAW_HINT)
    ends = list(_raw_ends(file))
    if not ends:
        raise Refusal("no partition table or file system was found in it", _RAW_HINT)
    return Layout(length, max(ends))


def _raw_ends(file: BinaryIO) -> Iterator[int]:
    """For each structure found, how far into the file it reaches, in bytes."""
    file.seek(0)
    head = file.read(72 << 10)
    if head[510:512] == b"\x55\xaa":
        yield from _mbr_ends(head[446:510])
    for sector in (SECTOR, 4096):
        if head[sector : sector + 8] == b"EFI PART":
            yield (struct.unpack_from("<Q", head, sector + 32)[0] + 1) * sector
    if head[1080:1082] == b"\x53\xef":
        blocks, block_log = struct.unpack_from("<I16xI", head, 1024 + 4)
        yield blocks << (10 + min(block_log, 6))
    if head[:4] == b"XFSB":
        block_bytes, blocks = struct.unpack_from(">IQ", head, 4)
        yield block_bytes * blocks
    if head[0x10040:0x10048] == b"_BHRfS_M":
        yield struct.unpack_from("<Q", head, 0x10070)[0]


def _mbr_ends(table: bytes) -> Iterator[int]:
    yield SECTOR
    entries = [table[at : at + 16] for at in range(0, 64, 16)]
    # In a boot sector without a partition table (a bare FAT file system) code stands here.
    if any(entry[0] not in (0, 0x80) for entry in entries):
        return
    for entry in entries:
        start, count = struct.unpack_from("<II", entry, 8)
        # 0xEE only says "see the GPT", often with the greatest possible length.
        if entry[4] not in (0, 0xEE):
            yield (start + count) * SECTOR


READERS: dict[str, Callable[[BinaryIO], Layout]] = {
    "qcow2": read_qcow2,
    "vdi": read_vdi,
    "vmdk": read_vmdk,
    "raw": read_raw,
}
