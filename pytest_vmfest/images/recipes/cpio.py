"""Writing an initial RAM disk: cpio's "newc" format (Linux, Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Cpio:
    """An archive in the making, with root as owner of all entries.

    >>> archive = Cpio()
    >>> archive.folders("dev", "proc")
    >>> archive.file("init", b"#!/bin/sh", 0o755)
    >>> len(archive.finish()) % 4
    0
    """

    def __init__(self) -> None:
        """Start empty."""
        self._parts: list[bytes] = []
        self._inode = 0

    def folders(self, *names: str) -> None:
        """Add folders; parents first."""
        for name in names:
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields: Iterable[int] = (
            self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [header, _padding(header), content, _padding(content)]


def _padding(data: bytes) -> bytes:
    return b"\0" * (-len(data) % 4)
