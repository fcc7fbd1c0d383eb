"""The folder of the image store, shared by processes that may end at any moment.

``images/NAME`` is a model, complete since the rename that made it appear. Work is done under the name's lock
in ``images/.partial-NAME@…``; a model that is being replaced stands in ``images/.replaced-NAME@…`` for the
moment between two renames. Whoever gets a name's lock and finds such a folder knows that its maker is dead.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_vmfest.errors import StoreError
from pytest_vmfest.folders import make_private
from pytest_vmfest.progress import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import filelock

    from pytest_vmfest.progress import Progress

_UNFINISHED = re.compile(r"\.(?P<kind>partial|replaced)-(?P<name>.+)@[0-9a-f]{8}\Z")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFolder:
    """``home/images`` and its locks. Nothing is created before the first change."""

    def __init__(self, home: Path, progress: Progress) -> None:
        """Remember the place."""
        self.images = home / "images"
        self._locks = home / "locks"
        self._progress = progress

    def names(self) -> list[str]:
        """The names of the installed models."""
        with self.errors():
            if not self.images.is_dir():
                return []
            return sorted(
                path.name for path in self.images.iterdir() if path.name[0] != "." and path.is_dir()
            )

    def being_replaced(self, name: str) -> bool:
        """Whether the model ``name`` is between the two renames of `publish`, or its maker died there."""
        return any(self.images.glob(f".replaced-{name}@*"))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Make `StoreError` of what the file system refuses."""
        try:
            yield
        except ConnectionError:
            # Of a progress display whose terminal went away.
            raise
        except OSError as error:
            if error.errno in _NO_SPACE:
                hint = "free space (vmfest image remove NAME), or set VMFEST_HOME to another disk"
            else:
                hint = "make it a folder that you may write to, or set VMFEST_HOME to one"
            place = error.filename or self.images
            raise StoreError(
                f"the image store cannot be used: {place}: {error.strerror}", hint=hint
            ) from error

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Be the only one, of all processes and threads, that changes the model ``name``.

        The file system's errors in the block become `StoreError`.
        """
        import filelock

        with self.errors():
            for folder in (self.images, self._locks):
                make_private(folder)
            lock = self._lock(name)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                self._progress(Step(f"image {name}", "waiting for another process that installs it"))
                lock.acquire()
        try:
            with self.errors():
                self._clear(name)
                yield
        finally:
            lock.release()

    def _lock(self, name: str) -> filelock.FileLock:
        import filelock

        return filelock.FileLock(self._locks / f"image-{name}.lock")

    @contextmanager
    def partial(self, name: str) -> Iterator[Path]:
        """A new folder to assemble the model ``name`` in, which is held; removed unless it was published."""
        folder = self._aside("partial", name)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            _remove(folder)

    def publish(self, partial: Path, name: str) -> None:
        """Let the assembled model appear under its name, in the place of the one that may be there."""
        final = self.images / name
        replaced = self._aside("replaced", name)
        _sync(partial)
        if final.exists():
            final.rename(replaced)
        try:
            partial.rename(final)
        except BaseException:
            self._clear_one(replaced, name, "replaced")
            raise
        _sync(self.images)
        shutil.rmtree(replaced, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Let the model ``name``, which is held, disappear at once and wholly."""
        doomed = self._aside("partial", name)
        (self.images / name).rename(doomed)
        shutil.rmtree(doomed)

    def _aside(self, kind: str, name: str) -> Path:
        return self.images / f".{kind}-{name}@{secrets.token_hex(4)}"

    def _clear(self, held: str) -> None:
        """Clear away what processes left that died at work on ``held`` or on a name that nobody holds."""
        import filelock

        for path in self.images.iterdir():
            found = _UNFINISHED.match(path.name)
            if found is None:
                continue
            if found["name"] == held:
                self._clear_one(path, found["name"], found["kind"])
                continue
            try:
                with self._lock(found["name"]).acquire(timeout=0):
                    self._clear_one(path, found["name"], found["kind"])
            except filelock.Timeout:
                continue

    def _clear_one(self, path: Path, name: str, kind: str) -> None:
        final = self.images / name
        if kind == "replaced" and path.exists() and not final.exists():
            path.rename(final)
        else:
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove a folder as far as that is possible, also what a recipe made of it with other owners."""
    from pytest_vmfest.images.recipes.rootless import remove_tree

    remove_tree(folder)


def _sync(folder: Path) -> None:
    """Make sure that a power cut does not undo the order of what was done in ``folder``."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
