"""Writing large files in order: zeros become holes, and the digests are taken of the very bytes written."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

CHUNK_BYTES = 1 << 20
# A multiple of every usual file system's block size.
_HOLE_BYTES = 64 << 10
_ZEROS = bytes(_HOLE_BYTES)


class SparseWriter:
    """A new file that is written from its beginning to its end, where the ``with`` block ends."""

    def __init__(self, path: Path, algorithms: Iterable[str] = ("sha256",)) -> None:
        """Create ``path``, which must not exist; ``algorithms`` are names that `hashlib.new` knows."""
        self._hashes = {name: hashlib.new(name) for name in algorithms}
        self._file = path.open("xb")
        self.written = 0

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        """Close the file, with the length that a hole at its end would not give it."""
        with self._file:
            if kind is None:
                self._file.truncate(self.written)

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        for one in self._hashes.values():
            one.update(data)
        for at in range(0, len(data), _HOLE_BYTES):
            part = data[at : at + _HOLE_BYTES]
            if part == _ZEROS:
                self._file.seek(len(part), os.SEEK_CUR)
            else:
                self._file.write(part)
        self.written += len(data)

    def hexdigest(self, algorithm: str) -> str:
        """The digest so far, in lower-case hexadecimal digits."""
        return self._hashes[algorithm].hexdigest()


def file_digest(path: Path, algorithm: str = "sha256", tell: Callable[[int], None] | None = None) -> str:
    """The digest of a file; ``tell`` is told from time to time how many bytes are read."""
    digest = hashlib.new(algorithm)
    done = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
            done += len(data)
            if tell is not None:
                tell(done)
    return digest.hexdigest()
