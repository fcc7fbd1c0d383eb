"""What can be said of an image beside its disk: the keys, their types, and the files that say it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.images.formats import DISK_ENDINGS
from pytest_vmfest.images.meta_file import read_meta_file
from pytest_vmfest.specs import NETWORK_MODES, Firmware, Login

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TEXT = (
    "os_family", "os_version", "os_type", "packager", "description", "hardware",
    "username", "password", "sudo_password", "host_key",
)  # fmt: skip
_BOOL = ("os_64_bit", "no_sudo")
_CHOICES: dict[str, tuple[str, ...]] = {"network": NETWORK_MODES, "firmware": get_args(Firmware)}
_PATH = "private_key"

METADATA_KEYS: tuple[str, ...] = (*_TEXT, *_BOOL, *_CHOICES, _PATH)
LOGIN_KEYS: frozenset[str] = frozenset(f.name for f in fields(Login))


def check_metadata(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``metadata`` without what is None, ``private_key`` as a path.

    Raises `ConfigurationError` that names ``where``, the key, and what is allowed.
    """
    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if key not in METADATA_KEYS:
            raise ConfigurationError(
                f"{where}: unknown key {key!r}", hint=f"allowed: {', '.join(sorted(METADATA_KEYS))}"
            )
        if value is not None:
            checked[key] = _checked(key, value, where)
    return checked


def _checked(key: str, value: Any, where: str) -> Any:
    if key in _BOOL:
        fits, expected = isinstance(value, bool), "true or false"
    elif key in _CHOICES:
        fits, expected = value in _CHOICES[key], f"one of {', '.join(_CHOICES[key])}"
    elif key == _PATH:
        fits, expected = isinstance(value, str | os.PathLike) and bool(str(value)), "the path of a file"
        value = Path(value).expanduser() if fits else value
    elif key == "host_key":
        fits = isinstance(value, str) and len(value.split()) in (2, 3)
        expected = "a public key in OpenSSH's format, such as 'ssh-ed25519 AAAA…'"
    else:
        fits, expected = isinstance(value, str), "a text"
    if not fits:
        shown = "the value" if "password" in key else repr(value)
        raise ConfigurationError(f"{where}: {key}: {shown} is not valid", hint=f"expected {expected}")
    return value


def sidecar_of(disk: Path) -> Path | None:
    """The file beside a disk image that tells its metadata, if there is one.

    For ``a.vdi`` that is the first of ``a.toml``, ``a.vdi.meta`` and vmfest's ``a.meta``.
    """
    stem = disk.with_suffix("") if disk.suffix.lower() in DISK_ENDINGS else disk
    names = (f"{stem.name}.toml", f"{disk.name}.meta", f"{stem.name}.meta")
    return next((path for name in names if (path := disk.with_name(name)).is_file()), None)


def read_sidecar(path: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """The checked metadata in a sidecar file; ``note`` is told of keys in a ``.meta`` that mean nothing here.

    A relative ``private_key`` is beside the file. Raises `ConfigurationError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text) if path.suffix == ".toml" else read_meta_file(text, str(path), note)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as an image's metadata: {error}", hint="correct it, or move it away"
        ) from None
    metadata = check_metadata(raw, str(path))
    if _PATH in metadata:
        metadata[_PATH] = path.parent / metadata[_PATH]
    return metadata


def read_private_key(path: Path) -> bytes:
    """The content of a private key's file; `ConfigurationError` if it cannot be read or is none."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"private_key {path} cannot be read: {error.strerror}") from None
    if b"PRIVATE KEY-----" not in key[:200]:
        raise ConfigurationError(
            f"private_key {path} is no private key in PEM or OpenSSH format",
            hint="give the file without the ending .pub",
        )
    return key
