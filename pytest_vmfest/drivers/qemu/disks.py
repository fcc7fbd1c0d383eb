"""Disk files, by ``qemu-img``: is an image what it says, and overlays on it.

A new machine's overlay is a copy of an empty one that is kept for each image: copying takes less than a
millisecond, ``qemu-img create`` 15 to 20. That empty overlay is also the proof that the image was checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.qemu.record import writing_to
from pytest_vmfest.errors import DriverError, ImageInvalidError, StoreError
from pytest_vmfest.folders import make_private

if TYPE_CHECKING:
    from pytest_vmfest.specs import ImageModel

SECTOR_BYTES = 512

_TIMEOUT_S = 300.0  # checking reads the tables of large images
_CHECKED_BY_QEMU = ("qcow2", "vmdk")
_STORE_TROUBLE = ("No space left on device", "Disk quota exceeded", "Read-only file system")


class Disks:
    """Works on disk files with the program ``qemu-img``; keeps empty overlays under ``cache``."""

    def __init__(self, program: str, home: Path, cache: Path) -> None:
        self._program = program
        self._home = home
        self._cache = cache

    def check(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` if the model's disk is not there, or no complete disk of its format."""
        _check_readable(image)
        template = self._template(image)
        if not template.exists():
            self._inspect(image)

    def create_overlay(self, image: ImageModel, target: Path) -> None:
        """Create an empty overlay on the image. Raises `ImageInvalidError`, `StoreError`."""
        _check_readable(image)
        template = self._template(image)
        try:
            shutil.copyfile(template, target)
        except FileNotFoundError:
            self._inspect(image)
            self._create_template(image, template)
            with writing_to(target):
                shutil.copyfile(template, target)
        except OSError:
            with writing_to(target):
                raise

    def snapshot_tags(self, disk: Path) -> list[str]:
        """The tags of the snapshots in a disk that no machine uses, oldest first."""
        return [entry["name"] for entry in self._info(disk).get("snapshots", [])]

    def create_snapshot(self, disk: Path, tag: str) -> None:
        """Keep the present content under a tag."""
        self._run("snapshot", "-c", tag, str(disk))

    def apply_snapshot(self, disk: Path, tag: str) -> None:
        """Go back to the content under a tag."""
        self._run("snapshot", "-a", tag, str(disk))

    def delete_snapshot(self, disk: Path, tag: str) -> None:
        """Forget the content under a tag."""
        self._run("snapshot", "-d", tag, str(disk))

    # --- empty overlays ----------------------------------------------------------------------------

    def _template(self, image: ImageModel) -> Path:
        """Where the empty overlay for the image is kept: a path that changes when the file does."""
        facts = image.disk.stat()
        where = hashlib.sha256(f"{image.format}:{image.disk.absolute()}".encode()).hexdigest()[:16]
        return self._cache / f"{where}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}.qcow2"

    def _create_template(self, image: ImageModel, template: Path) -> None:
        with writing_to(self._cache):
            make_private(self._cache)
            handle, beside = tempfile.mkstemp(dir=self._cache, prefix="new-", suffix=".qcow2")
            os.close(handle)
        try:
            base = str(image.disk.absolute())
            self._run("create", "-q", "-f", "qcow2", "-b", base, "-F", image.format, beside)
            with writing_to(template):
                Path(beside).replace(template)
        finally:
            Path(beside).unlink(missing_ok=True)
        where = template.name.partition("-")[0]
        for old in self._cache.glob(f"{where}-*.qcow2"):
            if old != template:
                old.unlink(missing_ok=True)

    # --- looking at images -------------------------------------------------------------------------

    def _inspect(self, image: ImageModel) -> None:
        try:
            facts = self._info(image.disk)
        except DriverError as error:
            raise _invalid(image, f"is no disk image: {error.message}") from error
        if facts["format"] != image.format:
            raise _invalid(image, f"holds {facts['format']}, not {image.format}")
        if not facts["virtual-size"]:
            raise _invalid(image, "is empty")
        if image.format == "raw" and image.disk.stat().st_size % SECTOR_BYTES:
            raise _invalid(image, f"is no disk: its size is no multiple of {SECTOR_BYTES} bytes")
        self._check_backing(image, facts)
        if image.format in _CHECKED_BY_QEMU:
            self._check_complete(image)
        if image.format == "vdi" and _vdi_is_cut(image.disk):
            raise _invalid(image, "is truncated")

    def _check_backing(self, image: ImageModel, facts: dict[str, Any]) -> None:
        backing = facts.get("full-backing-filename") or facts.get("backing-filename")
        external = facts.get("format-specific", {}).get("data", {}).get("data-file")
        for other in (backing, external):
            # An image from elsewhere must not show the guest any file of this host.
            if other and not Path(other).resolve().is_relative_to(self._home.resolve()):
                raise _invalid(image, f"is incomplete without {other}, which lies outside of the store")

    def _check_complete(self, image: ImageModel) -> None:
        command = [self._program, "check", "-q", "-f", image.format, str(image.disk)]
        done = _run(command)
        # 0: well; 3: leaked clusters, which do no harm.
        if done.returncode not in (0, 3):
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise _invalid(
                image, f"is truncated or damaged: {lines[0] if lines else 'qemu-img check failed'}"
            )

    def _info(self, disk: Path) -> dict[str, Any]:
        # -U: a running machine may have the file open.
        facts: dict[str, Any] = json.loads(self._run("info", "-U", "--output=json", str(disk)))
        return facts

    def _run(self, *arguments: str) -> str:
        done = _run([self._program, *arguments])
        if done.returncode != 0:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            kind = StoreError if any(trouble in said for trouble in _STORE_TROUBLE) else DriverError
            raise kind(said if said.startswith("qemu-img:") else f"qemu-img {arguments[0]}: {said}")
        return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(f"cannot run {command[0]}: {error}") from error


def _check_readable(image: ImageModel) -> None:
    try:
        with image.disk.open("rb"):
            pass
    except OSError as error:
        raise _invalid(image, f"cannot be read: {error.strerror}") from error
    boot = image.direct_boot
    for file in (boot.kernel, boot.initrd) if boot else ():
        if file is not None and not os.access(file, os.R_OK):
            raise ImageInvalidError(f"image {image.name!r}: its file {file} cannot be read")


def _invalid(image: ImageModel, what: str) -> ImageInvalidError:
    return ImageInvalidError(
        f"image {image.name!r}: {image.disk} {what}",
        hint="install it anew: vmfest image remove, then vmfest image add or build",
    )


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
