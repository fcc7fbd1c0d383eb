"""The files of a fake guest: a tree in a dict, with the errors of a real one."""

from __future__ import annotations

import errno
import fnmatch
import os
import posixpath
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

_MAX_LINKS = 40


@dataclass(frozen=True)
class Entry:
    """A file with its content, a folder, or a link with the path that it points to."""

    kind: Literal["file", "folder", "link"]
    mode: int
    data: bytes = b""


class FakeFiles:
    """A file tree. Paths are absolute; links are followed; errors are `OSError` with the usual numbers."""

    def __init__(self, entries: dict[str, Entry] | None = None) -> None:
        """An empty tree, or one with the given entries."""
        self._entries = dict(entries or {"/": Entry("folder", 0o755)})

    def copy(self) -> FakeFiles:
        """The same tree, independent of this one from now on."""
        return FakeFiles(self._entries)

    # --- looking -----------------------------------------------------------------------------------

    def resolve(self, path: str) -> str:
        """The path without ``.``, ``..`` and links; what it leads to need not exist."""
        found = "/"
        todo = [part for part in path.split("/") if part][::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part == ".":
                continue
            if part == "..":
                found = posixpath.dirname(found)
                continue
            step = posixpath.join(found, part)
            entry = self._entries.get(step)
            if entry is None or entry.kind != "link":
                found = step
                continue
            links += 1
            if links > _MAX_LINKS:
                raise _error(errno.ELOOP, path)
            target = os.fsdecode(entry.data)
            if target.startswith("/"):
                found = "/"
            todo += [part for part in target.split("/") if part][::-1]
        return found

    def entry(self, path: str) -> Entry | None:
        """What is at the path, links followed; None if nothing is."""
        return self._entries.get(self.resolve(path))

    def is_folder(self, path: str) -> bool:
        """Whether a folder is at the path."""
        entry = self.entry(path)
        return entry is not None and entry.kind == "folder"

    def read(self, path: str) -> bytes:
        """The content of a file."""
        entry = self._existing(path)
        if entry.kind == "folder":
            raise _error(errno.EISDIR, path)
        return entry.data

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted."""
        if self._existing(path).kind != "folder":
            raise _error(errno.ENOTDIR, path)
        return sorted(posixpath.basename(child) for child in self._children(self.resolve(path)))

    def glob(self, pattern: str) -> list[str]:
        """Paths that match a shell pattern, sorted; a ``*`` does not cross a slash."""
        parts = pattern.split("/")
        return sorted(
            path
            for path in self._entries
            if path.count("/") == len(parts) - 1
            and all(fnmatch.fnmatchcase(*pair) for pair in zip(path.split("/"), parts, strict=True))
        )

    # --- changing ----------------------------------------------------------------------------------

    def write(self, path: str, data: bytes, *, append: bool = False, mode: int | None = None) -> None:
        """Create, replace or lengthen a file, whose folder must exist."""
        where = self.resolve(path)
        old = self._entries.get(where)
        if old is not None and old.kind == "folder":
            raise _error(errno.EISDIR, path)
        self._check_folder(posixpath.dirname(where), path)
        kept = old.mode if old else 0o644
        before = old.data if old and append else b""
        self._entries[where] = Entry("file", kept if mode is None else mode, before + data)

    def make_folder(self, path: str, mode: int = 0o755, *, parents: bool = False) -> None:
        """Create a folder; with ``parents`` also those above it, and one that exists is fine."""
        where = self.resolve(path)
        old = self._entries.get(where)
        if old is not None:
            if parents and old.kind == "folder":
                return
            raise _error(errno.ENOTDIR if parents else errno.EEXIST, path)
        if parents:
            self.make_folder(posixpath.dirname(where), parents=True)
        self._check_folder(posixpath.dirname(where), path)
        self._entries[where] = Entry("folder", mode)

    def link(self, path: str, target: str) -> None:
        """Create or replace a link to ``target``."""
        where = self._unfollowed(path)
        self._check_folder(posixpath.dirname(where), path)
        self._entries[where] = Entry("link", 0o777, os.fsencode(target))

    def chmod(self, path: str, mode: int) -> None:
        """Change the permissions."""
        entry = self._existing(path)
        self._entries[self.resolve(path)] = replace(entry, mode=mode)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or link, or with ``recursive`` a folder with all in it."""
        where = self._unfollowed(path)
        entry = self._entries.get(where)
        if entry is None:
            raise _error(errno.ENOENT, path)
        if entry.kind == "folder" and not recursive:
            raise _error(errno.EISDIR, path)
        for inside in [other for other in self._entries if other.startswith(where.rstrip("/") + "/")]:
            if inside != "/":
                del self._entries[inside]
        if where != "/":
            del self._entries[where]

    # --- to and from this host ---------------------------------------------------------------------

    def put(self, local: Path, path: str) -> None:
        """Copy a file or folder of this host, with modes and links."""
        mode = stat.S_IMODE(local.lstat().st_mode)
        if local.is_symlink():
            self.link(path, os.fspath(local.readlink()))
        elif local.is_dir():
            self.make_folder(path, mode, parents=True)
            for child in sorted(local.iterdir()):
                self.put(child, posixpath.join(path, child.name))
            self.chmod(path, mode)
        else:
            self.write(path, local.read_bytes(), mode=mode)

    def get(self, path: str, local: Path) -> None:
        """Copy a file or folder to this host, with modes and links."""
        where = self._unfollowed(path)
        entry = self._entries.get(where)
        if entry is None:
            raise _error(errno.ENOENT, path)
        if entry.kind == "link":
            local.unlink(missing_ok=True)
            local.symlink_to(os.fsdecode(entry.data))
        elif entry.kind == "folder":
            local.mkdir(exist_ok=True)
            for child in self._children(where):
                self.get(child, local / posixpath.basename(child))
            local.chmod(entry.mode)
        else:
            local.write_bytes(entry.data)
            local.chmod(entry.mode)

    # --- parts -------------------------------------------------------------------------------------

    def _existing(self, path: str) -> Entry:
        entry = self.entry(path)
        if entry is None:
            raise _error(errno.ENOENT, path)
        return entry

    def _unfollowed(self, path: str) -> str:
        """The path with all links followed but a last one."""
        folder, name = posixpath.split(posixpath.normpath(path))
        return posixpath.join(self.resolve(folder), name)

    def _children(self, folder: str) -> list[str]:
        return sorted(path for path in self._entries if path != "/" and posixpath.dirname(path) == folder)

    def _check_folder(self, folder: str, path: str) -> None:
        entry = self._entries.get(folder)
        if entry is None:
            raise _error(errno.ENOENT, path)
        if entry.kind != "folder":
            raise _error(errno.ENOTDIR, path)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
