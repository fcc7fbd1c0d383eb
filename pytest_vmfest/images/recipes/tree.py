"""A guest's root file system while it is a folder of this host."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Tree:
    """Writes below ``root`` with modes that do not depend on this process's umask."""

    def __init__(self, root: Path) -> None:
        """Use ``root``, which may have content already."""
        self.root = root

    def folder(self, name: str, mode: int = 0o755) -> Path:
        """Make a folder, and those above it, or set the mode of one that is there."""
        path = self.root / name
        if not path.is_dir():
            if path != self.root:
                self.folder(str(path.parent.relative_to(self.root)))
            path.mkdir()
            path.chmod(mode)
        elif mode != 0o755:
            path.chmod(mode)
        return path

    def write(self, name: str, content: bytes | str, mode: int | None = None) -> None:
        """Create or replace a file; without ``mode``, one that begins with ``#!`` is executable."""
        data = content.encode() if isinstance(content, str) else content
        path = self._place(name)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(mode or (0o755 if data.startswith(b"#!") else 0o644))

    def link(self, name: str, target: str) -> None:
        """Create or replace a symbolic link."""
        path = self._place(name)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def program(self, name: str, source: Path) -> None:
        """Copy an executable file or library."""
        path = self._place(name)
        shutil.copyfile(source, path)
        path.chmod(0o755)

    def copy(self, template: Path) -> None:
        """Write every file of the folder ``template`` at its place."""
        for path in sorted(template.rglob("*")):
            if path.is_file():
                self.write(str(path.relative_to(template)), path.read_bytes())

    def _place(self, name: str) -> Path:
        path = self.root / name
        self.folder(str(path.parent.relative_to(self.root)))
        return path
