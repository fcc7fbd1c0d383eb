"""Base disks: what VirtualBox's differencing images stand on, made of models of any format and kept.

A base is a VDI of the driver's own, also for models that are VDIs: two copies of one VDI have the same UUID,
and VirtualBox would refuse the second. Its name, ``<cache_name>-<token>.vdi``, changes when the model's file
does, and is never used twice: VirtualBox remembers what stood where. ``<place>.json`` beside the bases of a
model tells which disk they were made of. Every VirtualBox has bases of its own: it does not know which ones
others use.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pytest_vmfest.drivers.disk_images import ImageTool, cache_name, invalid
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.progress import Step, silent
from pytest_vmfest.specs import ImageModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import DiskFormat

_FORMAT: DiskFormat = "vdi"
# A model whose file changes while it is read is read again.
_ATTEMPTS = 3


class Bases:
    """One VirtualBox's base disks, in ``home/cache/virtualbox``. Processes and threads may use it at once."""

    def __init__(
        self, home: Path, registry: str, program: Callable[[], str], progress: Progress = silent
    ) -> None:
        """``registry`` tells the VirtualBox from others; ``program`` finds ``qemu-img``, when one is needed.

        Touches nothing.
        """
        # VirtualBox takes one file by two paths for two disks of the same UUID.
        self._cache = home.resolve() / "cache" / "virtualbox"
        self.folder = self._cache / hashlib.sha256(registry.encode()).hexdigest()[:8]
        self._locks: dict[str, FileLock] = {}
        self._home = home
        self._program = program
        self._progress = progress

    def inspect(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` unless the model's disk is a complete one of its format."""
        ImageTool(self._program(), self._home).inspect(image)

    def content_bytes(self, image: ImageModel) -> int:
        """About what a base made of the model's disk takes."""
        return ImageTool(self._program(), self._home).content_bytes(image)

    def find(self, image: ImageModel) -> list[Path]:
        """The bases that were made of the model's disk as it is now."""
        return sorted(self.folder.glob(f"{_key(image)}-*.{_FORMAT}"))

    @contextmanager
    def hold(self, image: ImageModel) -> Iterator[None]:
        """Be the only one, of all processes and threads, that reads or writes the model's disk as a whole.

        Who holds it may hold it again. It can take as long as a conversion, so nobody else is to wait for
        what the caller has locked: this comes before the lock of VirtualBox's registry.
        """
        place = _place(_key(image))
        with writing_to(self.folder):
            make_private(self.folder)
            lock = self._locks.setdefault(place, FileLock(self._cache / f"{place}.lock"))
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def make(self, image: ImageModel) -> Path:
        """Make one more base of the model, which is held. Raises `ImageInvalidError`, `StoreError`."""
        for _ in range(_ATTEMPTS):
            key = _key(image)
            self.inspect(image)
            self._progress(Step(f"image {image.name}", "converting for VirtualBox"))
            for unfinished in self.folder.glob(f"new-{_place(key)}-*"):
                unfinished.unlink(missing_ok=True)
            token = secrets.token_hex(4)
            beside = self.folder / f"new-{_place(key)}-{token}"
            try:
                ImageTool(self._program(), self._home).convert(image, beside, _FORMAT)
                if _key(image) == key:
                    target = self.folder / f"{key}-{token}.{_FORMAT}"
                    with writing_to(target):
                        _seal(beside)
                        self._write_source(image, _place(key))
                        beside.rename(target)
                    return target
            finally:
                beside.unlink(missing_ok=True)
        raise invalid(image, "changes while it is read")

    def tidy(self, used: Collection[Path]) -> None:
        """Remove bases that are not ``used``, but for one of each model as it is now."""
        kept = set()
        for base in sorted(self.folder.glob(f"*-*.{_FORMAT}")):
            key = base.stem.rpartition("-")[0]
            if base in used:
                continue
            if key not in kept and key == self._current_key(_place(key)):
                kept.add(key)
            else:
                base.unlink(missing_ok=True)
        for source in self.folder.glob("*.json"):
            if self._current_key(source.stem) is None and not any(self.folder.glob(f"{source.stem}-*")):
                source.unlink(missing_ok=True)

    def _source(self, place: str) -> Path:
        return self.folder / f"{place}.json"

    def _write_source(self, image: ImageModel, place: str) -> None:
        source = self._source(place)
        beside = source.with_suffix(".new")
        beside.write_text(json.dumps({"disk": str(image.disk.absolute()), "format": image.format}))
        beside.replace(source)

    def _current_key(self, place: str) -> str | None:
        try:
            source = json.loads(self._source(place).read_text())
            return cache_name(ImageModel("", Path(source["disk"]), source["format"]))
        except (OSError, ValueError, KeyError):
            return None


def _key(image: ImageModel) -> str:
    try:
        return cache_name(image)
    except OSError as error:
        raise invalid(image, f"cannot be read: {error.strerror}") from error


def _place(key: str) -> str:
    return key.partition("-")[0]


def _seal(file: Path) -> None:
    """Make a file unchangeable, and sure to outlive a power cut."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o400)
