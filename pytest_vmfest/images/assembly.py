"""Putting together, in a folder that nobody sees yet, the model of an added image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pytest_vmfest.images.formats import inspect_disk
from pytest_vmfest.images.metadata import read_private_key
from pytest_vmfest.images.model_file import Installed, model_parts
from pytest_vmfest.images.sparse import SparseWriter
from pytest_vmfest.progress import Step
from pytest_vmfest.specs import ImageModel

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_vmfest.images.sources import Source
    from pytest_vmfest.progress import Progress

_KEY_FILE = "private_key"


def assemble(
    folder: Path,
    name: str,
    source: Source,
    digests: Mapping[str, str],
    metadata: Mapping[str, Any],
    progress: Progress,
) -> Installed:
    """Copy ``source`` into ``folder``, check it, and make a model of it.

    ``digests`` are what must come out, by algorithm. Raises what `Source.copy`, `inspect_disk` and the
    readers of metadata do, and `Source.digest_error`.
    """
    task = f"image {name}"
    origin = source.origin()
    said = {**source.metadata(lambda note: progress(Step(task, note))), **metadata}
    if "private_key" in said:
        said["private_key"] = _keep_key(folder, said["private_key"])
    copied = folder / "disk.part"
    with SparseWriter(copied, {"sha256", *digests}) as target:
        source.copy(target, lambda done, total: progress(Step(task, source.verb, done, total)))
    for algorithm, expected in digests.items():
        found = target.hexdigest(algorithm)
        if found != expected:
            raise source.digest_error(
                f"{source.shown}: its {algorithm} is {found}, not {expected}",
                hint="check the digest, and that the image comes from where you think",
            )
    progress(Step(task, "checking"))
    disk_format = inspect_disk(copied, shown=source.shown, file_name=source.file_name)
    disk = copied.rename(folder / f"disk.{disk_format}")
    sha256 = target.hexdigest("sha256")
    model = ImageModel(name=name, disk=disk, format=disk_format, sha256=sha256, **model_parts(said))
    return Installed(model, origin, {disk.name: sha256})


def _keep_key(folder: Path, path: Path) -> Path:
    kept = folder / _KEY_FILE
    with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(read_private_key(path))
    return kept


def seal(model: ImageModel) -> None:
    """Make the model's files unchangeable, and sure to outlive a power cut."""
    boot = model.direct_boot
    for path in (model.disk, *((boot.kernel, boot.initrd) if boot else ())):
        if path is not None:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(0o400)
