"""Recognising disk images by their content, and refusing what is none, truncated, or not one whole file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO

from pytest_vmfest.errors import ImageInvalidError
from pytest_vmfest.images import headers
from pytest_vmfest.images.headers import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vmfest.specs import DiskFormat

DISK_ENDINGS = (".qcow2", ".raw", ".img", ".vdi", ".vmdk")
_RAW_ENDINGS = (".raw", ".img")

# What users try to add and have to unpack or convert first: ending, first bytes, what it is, how.
_CONVERT = "convert it: qemu-img convert -O qcow2 THIS DISK.qcow2, then add DISK.qcow2"
_OTHERS: tuple[tuple[str, bytes, str, str], ...] = (
    (".gz", b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip -k THIS"),
    (".xz", b"\xfd7zXZ\0", "compressed by xz", "unpack it: unxz -k THIS"),
    (".bz2", b"BZh", "compressed by bzip2", "unpack it: bunzip2 -k THIS"),
    (".zst", b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it: unzstd THIS"),
    (".zip", b"PK\x03\x04", "a zip archive", "unpack it: unzip THIS"),
    (".7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x THIS"),
    (".ova", b"", "an OVA archive", "unpack it: tar -xf THIS, then add its .vmdk"),
    (".box", b"", "a Vagrant box", "unpack it: tar -xf THIS, then add its box.img or .vmdk"),
    (".tgz", b"", "a compressed tar archive", "unpack it: tar -xf THIS"),
    (".tar", b"", "a tar archive", "unpack it: tar -xf THIS"),
    (".vhd", b"conectix", "a VHD image", _CONVERT),
    (".vhdx", b"vhdxfile", "a VHDX image", _CONVERT),
    (".qed", b"QED\0", "a QED image", _CONVERT),
)
_UNPACK_FIRST = "; then add the disk image in it"


def derive_name(file_name: str) -> str:
    """The name of the model that a file becomes: its name without the ending.

    Characters that no name can have become hyphens. May be empty, if nothing is left.

    >>> derive_name("debian-6.0.2.1-64bit-v0.3.vdi")
    'debian-6.0.2.1-64bit-v0.3'
    """
    path = PurePath(file_name)
    stem = path.stem if path.suffix.lower() in DISK_ENDINGS else path.name
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("._+-")[:100]


def refuse_by_ending(shown: str, file_name: str) -> None:
    """Raise `ImageInvalidError` for what its name alone says is no plain disk image.

    This spares a long download whose result would be refused.
    """
    for ending, _magic, what, hint in _OTHERS:
        if file_name.lower().endswith(ending):
            raise _not_supported(shown, file_name, what, hint)


def inspect_disk(path: Path, *, shown: str, file_name: str) -> DiskFormat:
    """The format of the disk image ``path``, which is what its content says, whatever its ending.

    ``shown`` is what messages call it, ``file_name`` its original name: only ``.raw`` and ``.img`` may be
    raw. Raises `ImageInvalidError` for what is no disk image, is truncated, or needs other files.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if not head:
            raise ImageInvalidError(f"{shown} is empty (0 bytes)", hint="make or download it again")
        disk_format = _recognise(head, file_name, shown)
        try:
            _check_length(file, disk_format, head)
        except Refusal as refusal:
            hint = refusal.hint.replace("THIS", file_name)
            raise ImageInvalidError(f"{shown}: {refusal.reason}", hint=hint) from None
    _check_with_qemu(path, disk_format, shown)
    return disk_format


def _recognise(head: bytes, file_name: str, shown: str) -> DiskFormat:
    at = headers.VDI_SIGNATURE_OFFSET
    if head.startswith(headers.QCOW2_MAGIC):
        return "qcow2"
    if head.startswith((headers.VMDK_MAGIC, headers.VMDK_DESCRIPTOR)):
        return "vmdk"
    if head[at : at + 4] == headers.VDI_SIGNATURE:
        return "vdi"
    for _ending, magic, what, hint in _OTHERS:
        if magic and head.startswith(magic):
            raise _not_supported(shown, file_name, what, hint)
    if head[257:262] == b"ustar":
        raise _not_supported(shown, file_name, "a tar archive", "unpack it: tar -xf THIS")
    if PurePath(file_name).suffix.lower() in _RAW_ENDINGS and not _is_text(head):
        return "raw"
    raise ImageInvalidError(
        f"{shown} is no disk image: it begins with {_described(head)}",
        hint="known are qcow2, vdi and vmdk by their content, and raw disks that are called .raw or .img",
    )


def _check_length(file: BinaryIO, disk_format: DiskFormat, head: bytes) -> None:
    if head.startswith(headers.VMDK_DESCRIPTOR):
        file.seek(0)
        headers.refuse_vmdk_descriptor(file)
    layout = headers.READERS[disk_format](file)
    length = file.seek(0, 2)
    if length < layout.end_bytes:
        raise Refusal(
            f"it is truncated: {layout.end_bytes} bytes are needed, {length} are there",
            "copy or download it again",
        )


def _check_with_qemu(path: Path, disk_format: DiskFormat, shown: str) -> None:
    """Let ``qemu-img`` look for damage further inside; where it is missing, the headers have to do.

    By now it is known that the image names no other file, which qemu-img would open.
    """
    program = shutil.which("qemu-img")
    if program is None or disk_format == "raw":
        return
    done = subprocess.run(
        [program, "check", "-q", "-f", disk_format, str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    # 3: leaked clusters, which cost space only; 63: the format cannot be checked (qemu-img(1)).
    if done.returncode not in (0, 3, 63):
        said = (done.stderr or done.stdout).strip().replace(str(path), shown).splitlines() or ["no message"]
        raise ImageInvalidError(f"{shown} is damaged: {said[0]}", hint="copy or download it again")


def _not_supported(shown: str, file_name: str, what: str, hint: str) -> ImageInvalidError:
    more = "" if "add" in hint else _UNPACK_FIRST
    return ImageInvalidError(
        f"{shown} is {what}, which is not supported", hint=hint.replace("THIS", file_name) + more
    )


def _is_text(head: bytes) -> bool:
    return not head.translate(None, bytes(range(32, 256)) + b"\t\r\n\f\x1b")


def _described(head: bytes) -> str:
    if not head.strip(b"\0"):
        return "zeros"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    if head.startswith(b"\x7fELF"):
        return "a program (ELF)"
    if _is_text(head):
        line = head.split(b"\n", 1)[0][:40].decode("utf-8", "replace").strip()
        return f"the text {line!r}"
    return f"the bytes {head[:8].hex(' ')}"
