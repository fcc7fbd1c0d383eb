"""``model.toml``: an installed model on disk.

Its keys are those of an image's metadata, and what the store knows of the files beside it. Names of files
are relative to the folder, so that a store can be moved.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_vmfest.errors import ConfigurationError, ImageInvalidError
from pytest_vmfest.images.metadata import LOGIN_KEYS, METADATA_KEYS, check_metadata
from pytest_vmfest.specs import DISK_FORMATS, DirectBoot, ImageModel, Login

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL_FILE = "model.toml"


@dataclass(frozen=True)
class Origin:
    """Where a model came from: ``source`` is a path, a URL without credentials, or a recipe's name.

    Two equal origins mean that nothing has changed: ``stamp`` tells a file's size and time of change, or one
    URL from another that looks the same without its credentials; ``sidecar`` is the digest of the metadata
    file that was beside it, or empty.
    """

    kind: Literal["file", "url", "recipe"]
    source: str
    stamp: str = ""
    sidecar: str = ""


@dataclass(frozen=True)
class Installed:
    """A model in the store: ``digests`` are the SHA-256 of its files, by their names in the folder."""

    model: ImageModel
    origin: Origin
    digests: Mapping[str, str]


def write_model(folder: Path, installed: Installed) -> None:
    """Write ``model.toml`` into ``folder``, which has the model's files."""
    import tomli_w

    model = installed.model
    document: dict[str, Any] = {"name": model.name, "disk": model.disk.name, "format": model.format}
    for key in METADATA_KEYS:
        value = getattr(model.login if key in LOGIN_KEYS else model, key)
        if value is not None:
            document[key] = os.path.relpath(value, folder) if key == "private_key" else value
    if model.direct_boot is not None:
        boot = model.direct_boot
        document["direct_boot"] = {"kernel": boot.kernel.name, "command_line": boot.command_line}
        if boot.initrd is not None:
            document["direct_boot"]["initrd"] = boot.initrd.name
    document["origin"] = asdict(installed.origin)
    document["sha256"] = dict(installed.digests)
    path = folder / MODEL_FILE
    # It may hold a password.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        tomli_w.dump(document, file)
        file.flush()
        os.fsync(file.fileno())


def read_model(folder: Path) -> Installed:
    """The model in ``folder``; `ImageInvalidError` if its ``model.toml`` cannot be understood."""
    path = folder / MODEL_FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return _parsed(document, folder)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
        raise ImageInvalidError(
            f"{path} is damaged: {error}",
            hint=f"remove the image and install it again: vmfest image remove {folder.name}",
        ) from None


def _parsed(document: dict[str, Any], folder: Path) -> Installed:
    metadata = check_metadata({k: v for k, v in document.items() if k in METADATA_KEYS}, MODEL_FILE)
    if "private_key" in metadata:
        # Not by the file system's "..", which a folder that is a link would lead astray.
        metadata["private_key"] = Path(os.path.normpath(folder / metadata["private_key"]))
    if document["format"] not in DISK_FORMATS:
        raise ValueError(f"unknown disk format {document['format']!r}")
    boot = document.get("direct_boot")
    direct_boot = None
    if boot is not None:
        initrd = folder / boot["initrd"] if "initrd" in boot else None
        direct_boot = DirectBoot(folder / boot["kernel"], initrd, boot["command_line"])
    digests = {str(name): str(digest) for name, digest in document["sha256"].items()}
    model = ImageModel(
        name=folder.name,
        disk=folder / document["disk"],
        format=document["format"],
        sha256=digests.get(document["disk"]),
        direct_boot=direct_boot,
        **model_parts(metadata),
    )
    return Installed(model, Origin(**document["origin"]), digests)


def model_parts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ImageModel` for checked metadata."""
    login = Login(**{key: value for key, value in metadata.items() if key in LOGIN_KEYS})
    return {"login": login, **{key: value for key, value in metadata.items() if key not in LOGIN_KEYS}}
