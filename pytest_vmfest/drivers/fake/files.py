"""The files of a fake guest: a tree in a dict, with the errors of a real one."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAX_LINKS = 40


@dataclass(frozen=True)
class Entry:
    """What is at a path: ``mode`` tells its kind and permissions as `os.stat` does.

    ``data`` is a file's content, or the path that a link points to.
    """

    mode: int
    data: bytes = b""


class FakeFiles:
    """A file tree. Paths are absolute; links are followed; errors are `OSError` with the usual numbers."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        """An empty tree, or one with the given entries."""
        self._entries = dict(entries or {"/": Entry(stat.S_IFDIR | 0o755)})

    def copy(self) -> FakeFiles:
        """The same tree, independent of this one from now on."""
        return FakeFiles(self._entries)

    def resolve(self, path: str, *, last: bool = True, links: int = _MAX_LINKS) -> str:
        """The path without links (a ``last`` one may stay); what it leads to need not exist."""
        folder, name = posixpath.split(posixpath.normpath(path))
        if not name:
            return "/"
        folder = self.resolve(folder, links=links)
        where = posixpath.join(folder, name)
        entry = self._entries.get(where)
        if entry is None or not stat.S_ISLNK(entry.mode) or not last:
            return where
        if not links:
            raise _error(errno.ELOOP, path)
        return self.resolve(posixpath.join(folder, os.fsdecode(entry.data)), links=links - 1)

    def entry(self, path: str) -> Entry | None:
        """What is at the path, links followed; None if nothing is."""
        return self._entries.get(self.resolve(path))

    def existing(self, path: str) -> Entry:
        """What is at the path, links followed."""
        if (entry := self.entry(path)) is None:
            raise _error(errno.ENOENT, path)
        return entry

    def is_folder(self, path: str) -> bool:
        """Whether a folder is at the path."""
        entry = self.entry(path)
        return entry is not None and stat.S_ISDIR(entry.mode)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        if self.is_folder(path):
            raise _error(errno.EISDIR, path)
        return self.existing(path).data

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted."""
        if not stat.S_ISDIR(self.existing(path).mode):
            raise _error(errno.ENOTDIR, path)
        folder = self.resolve(path)
        return sorted(
            posixpath.basename(inside)
            for inside in list(self._entries)
            if inside != "/" and posixpath.dirname(inside) == folder
        )

    def write(self, path: str, data: bytes, *, append: bool = False) -> None:
        """Create, replace or lengthen a file, whose folder must exist."""
        old = self.entry(path) or Entry(stat.S_IFREG | 0o644)
        if stat.S_ISDIR(old.mode):
            raise _error(errno.EISDIR, path)
        self._set(self.resolve(path), Entry(old.mode, old.data + data if append else data))

    def make_folder(self, path: str, *, parents: bool = False) -> None:
        """Create a folder; with ``parents`` also those above it, and one that exists is fine."""
        old = self.entry(path)
        if old is not None and parents and stat.S_ISDIR(old.mode):
            return
        if old is not None:
            raise _error(errno.ENOTDIR if parents else errno.EEXIST, path)
        where = self.resolve(path)
        if parents:
            self.make_folder(posixpath.dirname(where), parents=True)
        self._set(where, Entry(stat.S_IFDIR | 0o755))

    def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file or link, or with ``recursive`` a folder with all in it."""
        where = self.resolve(path, last=False)
        if where not in self._entries and not missing_ok:
            raise _error(errno.ENOENT, path)
        if where in self._entries and stat.S_ISDIR(self._entries[where].mode) and not recursive:
            raise _error(errno.EISDIR, path)
        for inside in list(self._entries):
            if inside != "/" and f"{inside}/".startswith(f"{where.rstrip('/')}/"):
                del self._entries[inside]

    def put(self, local: Path, path: str) -> None:
        """Copy a file or folder of this host, with modes and links."""
        mode, data = local.lstat().st_mode, b""
        if stat.S_ISDIR(mode):
            self.make_folder(path, parents=True)
            for child in local.iterdir():
                self.put(child, posixpath.join(path, child.name))
        else:
            data = os.fsencode(local.readlink()) if local.is_symlink() else local.read_bytes()
        self._set(self.resolve(path, last=not local.is_symlink()), Entry(mode, data))

    def get(self, path: str, local: Path) -> None:
        """Copy a file or folder to this host, with modes and links."""
        entry = self._entries.get(self.resolve(path, last=False)) or self.existing(path)
        if stat.S_ISLNK(entry.mode):
            local.unlink(missing_ok=True)
            local.symlink_to(os.fsdecode(entry.data))
            return
        if stat.S_ISDIR(entry.mode):
            local.mkdir(exist_ok=True)
            for name in self.names(path):
                self.get(posixpath.join(path, name), local / name)
        else:
            local.write_bytes(entry.data)
        local.chmod(stat.S_IMODE(entry.mode))

    def _set(self, where: str, entry: Entry) -> None:
        folder = self._entries.get(posixpath.dirname(where))
        if folder is None or not stat.S_ISDIR(folder.mode):
            raise _error(errno.ENOTDIR if folder else errno.ENOENT, where)
        old = self._entries.get(where)
        if old is not None and stat.S_ISDIR(old.mode) and not stat.S_ISDIR(entry.mode):
            raise _error(errno.EISDIR, where)
        self._entries[where] = entry


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
