"""The keys of an image store: its login key pair, and the host key that its own images are given.

Both are ed25519: the smallest keys, and the quickest to use in a guest without hardware acceleration.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import StoreError
from pytest_vmfest.folders import make_private
from pytest_vmfest.specs import Identity

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CLIENT_KEY = "id_ed25519"
HOST_KEY = "host_ed25519"

_LOCK_TIMEOUT_S = 30
_COMMENT = "vmfest"


def ensure_identity(folder: Path) -> Identity:
    """The identity that is kept in ``folder``, made now if there is none yet.

    Several processes may ask at once: all get the same keys. The private keys are readable by their owner
    only, as ``ssh`` demands. Raises `StoreError` when the folder cannot be used or a key file is damaged.
    """
    from filelock import FileLock, Timeout

    try:
        make_private(folder)
        _restrict(folder, 0o700)
        with FileLock(folder / ".lock", timeout=_LOCK_TIMEOUT_S):
            client, host = _ensure_pair(folder / CLIENT_KEY), _ensure_pair(folder / HOST_KEY)
        host_private_key = (folder / HOST_KEY).read_text("ascii")
    except Timeout:
        raise StoreError(
            f"the keys in {folder} have been locked for {_LOCK_TIMEOUT_S} s",
            hint=f"end the process that holds {folder / '.lock'}",
        ) from None
    except OSError as error:
        raise StoreError(
            f"the keys in {folder} cannot be used: {error}",
            hint="make the folder writable, or choose another one with VMFEST_HOME",
        ) from error
    return Identity(
        private_key=folder / CLIENT_KEY,
        authorized_key=f"{client} {_COMMENT}",
        host_private_key=host_private_key,
        host_public_key=host,
    )


def _ensure_pair(path: Path) -> str:
    """Make the private key ``path`` and its ``.pub`` where they are missing; returns the public key."""
    if not path.exists():
        _write(path, _new_private_key(), mode=0o600)
    _restrict(path, 0o600)
    public_key = _public_key(path)
    beside = path.with_name(f"{path.name}.pub")
    line = f"{public_key} {_COMMENT}\n"
    if not beside.exists() or beside.read_text("utf-8", "replace") != line:
        _write(beside, line.encode("ascii"), mode=0o644)
    return public_key


def _new_private_key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _public_key(path: Path) -> str:
    """The public half of the private key in ``path``, as OpenSSH writes it."""
    from cryptography.hazmat.primitives import serialization

    public = _load(path).public_key()
    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode(
        "ascii"
    )


def _load(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    hint = (
        f"restore {path}, or remove it to have a new key made; "
        "images that were built with the old one then have to be built again"
    )
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreError(f"the private key {path} is damaged: {error}", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(f"the private key {path} is not of type ed25519", hint=hint)
    return key


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Replace ``path``, so that no reader ever sees half of it, and no crash leaves half of it."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(mode)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _restrict(path: Path, mode: int) -> None:
    """Take from others what ``mode`` does not give them."""
    if path.stat().st_mode & 0o777 & ~mode:
        path.chmod(mode)
