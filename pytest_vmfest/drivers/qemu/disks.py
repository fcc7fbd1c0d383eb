"""Overlays on images, and snapshots in them, by ``qemu-img``.

A new machine's overlay is a copy of an empty one that is kept for each image: copying takes less than a
millisecond, ``qemu-img create`` 15 to 20. That empty overlay is also the proof that the image was checked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.disk_images import ImageTool, cache_name, check_readable
from pytest_vmfest.folders import make_private, writing_to

if TYPE_CHECKING:
    from pytest_vmfest.specs import ImageModel

# An empty overlay takes three of these and a bit, and a guest's small write one. Its speed is that of the
# 64 KiB that qemu-img takes by itself.
_CLUSTER_BYTES = 16 * 1024


class Disks:
    """Works on disk files with the program ``qemu-img``; keeps empty overlays under ``cache``."""

    def __init__(self, program: str, home: Path, cache: Path) -> None:
        self._tool = ImageTool(program, home)
        self._cache = cache

    def check(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` if the model's disk is not there, or no complete disk of its format."""
        check_readable(image)
        template = self._template(image)
        if not template.exists():
            self._tool.inspect(image)

    def create_overlay(self, image: ImageModel, target: Path) -> None:
        """Create an empty overlay on the image. Raises `ImageInvalidError`, `StoreError`."""
        check_readable(image)
        template = self._template(image)
        try:
            shutil.copyfile(template, target)
        except FileNotFoundError:
            self._tool.inspect(image)
            self._create_template(image, template)
            with writing_to(target):
                shutil.copyfile(template, target)
        except OSError:
            with writing_to(target):
                raise

    def create_empty_overlay(self, base: Path, base_format: str, target: Path) -> None:
        """Create an overlay on any disk, which has to stay where it is."""
        options = ["-o", f"cluster_size={_CLUSTER_BYTES}", "-b", str(base), "-F", base_format]
        self._tool.run("create", "-q", "-f", "qcow2", *options, str(target))

    def snapshot_tags(self, disk: Path) -> list[str]:
        """The tags of the snapshots in a disk that no machine uses, oldest first."""
        return [entry["name"] for entry in self._tool.info(disk).get("snapshots", [])]

    def create_snapshot(self, disk: Path, tag: str) -> None:
        """Keep the present content under a tag."""
        self._tool.run("snapshot", "-c", tag, str(disk))

    def apply_snapshot(self, disk: Path, tag: str) -> None:
        """Go back to the content under a tag."""
        self._tool.run("snapshot", "-a", tag, str(disk))

    def delete_snapshot(self, disk: Path, tag: str) -> None:
        """Forget the content under a tag."""
        self._tool.run("snapshot", "-d", tag, str(disk))

    # --- empty overlays ----------------------------------------------------------------------------

    def _template(self, image: ImageModel) -> Path:
        """Where the empty overlay for the image is kept: a path that changes when the file does."""
        return self._cache / f"{cache_name(image)}-{_CLUSTER_BYTES}.qcow2"

    def _create_template(self, image: ImageModel, template: Path) -> None:
        with writing_to(self._cache):
            make_private(self._cache)
            handle, beside = tempfile.mkstemp(dir=self._cache, prefix="new-", suffix=".qcow2")
            os.close(handle)
        try:
            self.create_empty_overlay(image.disk.absolute(), image.format, Path(beside))
            with writing_to(template):
                Path(beside).replace(template)
        finally:
            Path(beside).unlink(missing_ok=True)
        where = template.name.partition("-")[0]
        for old in self._cache.glob(f"{where}-*.qcow2"):
            if old != template:
                old.unlink(missing_ok=True)
