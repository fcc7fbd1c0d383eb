"""Disk images of any format, by ``qemu-img``: is one what it says, is it whole; conversion."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import DriverError, DriverUnavailableError, ImageInvalidError, StoreError

if TYPE_CHECKING:
    from pytest_vmfest.specs import DiskFormat, ImageModel

IMAGE_PROGRAM = "qemu-img"
IMAGE_PACKAGE = "qemu-utils"
SECTOR_BYTES = 512

_TIMEOUT_S = 300.0  # checking reads the tables of large images
_CONVERT_TIMEOUT_S = 3600.0  # converting reads and writes all of them
_CHECKED_BY_QEMU = ("qcow2", "vmdk")
_STORE_TROUBLE = ("No space left on device", "Disk quota exceeded", "Read-only file system")


def find_image_program(folder: Path | None = None) -> str:
    """The path of ``qemu-img`` in ``folder``, or in ``PATH``.

    `DriverUnavailableError` says what to install.
    """
    # Absolute, as it may be run from another folder.
    found = shutil.which(IMAGE_PROGRAM, path=str(folder.absolute()) if folder else None)
    if found is None:
        raise DriverUnavailableError(
            f"there is no {IMAGE_PROGRAM} in {folder or 'PATH'}; disk images are checked and converted by it",
            hint=f"install it with: vmfest doctor --install (package on Debian and Ubuntu: {IMAGE_PACKAGE})",
        )
    return found


def cache_name(image: ImageModel) -> str:
    """A file name for what is made of the model's disk and kept: another one once that file changes.

    Names for disks at one place have all before the first dash in common. Raises `OSError`.
    """
    facts = image.disk.stat()
    where = hashlib.sha256(f"{image.format}:{image.disk.absolute()}".encode()).hexdigest()[:16]
    return f"{where}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def check_readable(image: ImageModel) -> None:
    """Raise `ImageInvalidError` if one of the model's files cannot be read."""
    try:
        with image.disk.open("rb"):
            pass
    except OSError as error:
        raise invalid(image, f"cannot be read: {error.strerror}") from error
    boot = image.direct_boot
    for file in (boot.kernel, boot.initrd) if boot else ():
        if file is not None and not os.access(file, os.R_OK):
            raise ImageInvalidError(f"image {image.name!r}: its file {file} cannot be read")


def invalid(image: ImageModel, what: str) -> ImageInvalidError:
    """The error for a model whose disk is not what it should be."""
    return ImageInvalidError(
        f"image {image.name!r}: {image.disk} {what}",
        hint="install it anew: vmfest image remove, then vmfest image add or build",
    )


class ImageTool:
    """The program ``qemu-img``, at work on images of the store in ``home``."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._home = home

    def inspect(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` unless the model's disk is a complete one of its format."""
        try:
            facts = self.info(image.disk)
        except DriverError as error:
            raise invalid(image, f"is no disk image: {error.message}") from error
        if facts["format"] != image.format:
            raise invalid(image, f"holds {facts['format']}, not {image.format}")
        if not facts["virtual-size"]:
            raise invalid(image, "is empty")
        if image.format == "raw" and image.disk.stat().st_size % SECTOR_BYTES:
            raise invalid(image, f"is no disk: its size is no multiple of {SECTOR_BYTES} bytes")
        self._check_backing(image, facts)
        if image.format in _CHECKED_BY_QEMU:
            self._check_complete(image)
        if image.format == "vdi" and _vdi_is_cut(image.disk):
            raise invalid(image, "is truncated")

    def convert(self, image: ImageModel, target: Path, target_format: DiskFormat) -> None:
        """Write the model's disk to ``target``, in another format. Raises `DriverError`, `StoreError`.

        The new file has an identity of its own where the format knows such (VDI, VMDK).
        """
        self.run(
            *("convert", "-f", image.format, "-O", target_format, str(image.disk.absolute()), str(target)),
            timeout_s=_CONVERT_TIMEOUT_S,
        )

    def info(self, disk: Path) -> dict[str, Any]:
        """What ``qemu-img info`` tells of a disk, which a running machine may have open."""
        facts: dict[str, Any] = json.loads(self.run("info", "-U", "--output=json", str(disk)))
        return facts

    def content_bytes(self, image: ImageModel) -> int:
        """About what the model's disk takes in a VDI: not compressed, in blocks of 1 MiB."""
        target = ("-O", "qcow2", "-o", "cluster_size=1M")
        source = ("-f", image.format, str(image.disk.absolute()))
        return int(json.loads(self.run("measure", "--output=json", *target, *source))["required"])

    def run(self, *arguments: str, timeout_s: float = _TIMEOUT_S) -> str:
        """What the program printed; `StoreError` for a full or read-only disk, else `DriverError`."""
        done = self._run(*arguments, timeout_s=timeout_s)
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            kind = StoreError if any(trouble in said for trouble in _STORE_TROUBLE) else DriverError
            raise kind(said if said.startswith("qemu-img:") else f"qemu-img {arguments[0]}: {said}")
        return done.stdout

    def _check_backing(self, image: ImageModel, facts: dict[str, Any]) -> None:
        backing = facts.get("full-backing-filename") or facts.get("backing-filename")
        external = facts.get("format-specific", {}).get("data", {}).get("data-file")
        for other in (backing, external):
            # An image from elsewhere must not show the guest any file of this host.
            if other and not Path(other).resolve().is_relative_to(self._home.resolve()):
                raise invalid(image, f"is incomplete without {other}, which lies outside of the store")

    def _check_complete(self, image: ImageModel) -> None:
        done = self._run("check", "-q", "-f", image.format, str(image.disk))
        # 0: well; 3: leaked clusters, which do no harm.
        if done.returncode not in (0, 3):
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise invalid(image, f"is truncated or damaged: {lines[0] if lines else 'qemu-img check failed'}")

    def _run(self, *arguments: str, timeout_s: float = _TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self._program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DriverError(f"cannot run {self._program}: {error}") from error


def _vdi_is_cut(disk: Path) -> bool:
    """Whether a VDI is shorter than its header says, which ``qemu-img check`` does not notice.

    Fields by VirtualBox's ``VDICore.h``: data offset, block size, and number of allocated blocks.
    """
    with disk.open("rb") as file:
        header = file.read(SECTOR_BYTES)
    with suppress(struct.error):
        (data_offset,) = struct.unpack_from("<I", header, 0x158)
        (block_bytes,) = struct.unpack_from("<I", header, 0x178)
        (allocated,) = struct.unpack_from("<I", header, 0x184)
        return bool(disk.stat().st_size < data_offset + allocated * block_bytes)
    return True
