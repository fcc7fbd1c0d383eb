"""Folders that are nobody else's business, and what goes wrong when one writes to them."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_vmfest.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_private(folder: Path) -> None:
    """Create a folder, and what is missing above it, for this user alone (0700).

    Folders that are there already stay as they are. Raises `OSError`.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        make_private(folder.parent)
        make_private(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into `StoreError`."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space, or set VMFEST_HOME to a folder on another file system",
            errno.EDQUOT: "free some space, or set VMFEST_HOME to a folder on another file system",
            errno.EACCES: "make it writable for you, or set VMFEST_HOME to another folder",
            errno.EROFS: "set VMFEST_HOME to a folder that can be written to",
        }
        raise StoreError(
            f"cannot write to {place}: {error.strerror or error}", hint=hints.get(error.errno or 0, "")
        ) from error
