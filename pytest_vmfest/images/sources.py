"""Where an added image comes from: a file of this machine, or a URL."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pytest_vmfest.errors import (
    ConfigurationError,
    ImageError,
    ImageFetchError,
    ImageInvalidError,
    ImageNotFoundError,
)
from pytest_vmfest.images.formats import DISK_ENDINGS, derive_name, refuse_by_ending
from pytest_vmfest.images.metadata import read_sidecar, sidecar_of
from pytest_vmfest.images.model_file import Installed, Origin
from pytest_vmfest.images.sparse import CHUNK_BYTES, file_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_vmfest.images.fetch import Tell
    from pytest_vmfest.images.sparse import SparseWriter


class Source(ABC):
    """A disk image that can be copied into the store.

    ``shown`` is what messages call it, ``verb`` what copying it is called, ``file_name`` its name there.
    """

    verb: ClassVar[str]
    digest_error: ClassVar[type[ImageError]]
    shown: str
    file_name: str

    @property
    def name(self) -> str:
        """The name of the model that it becomes, unless another one is given."""
        return derive_name(self.file_name)

    @abstractmethod
    def origin(self) -> Origin:
        """What `Installed.origin` is for a model made of it as it is now."""

    @abstractmethod
    def suffix(self) -> str:
        """What is put to the name when that belongs to another image: tells one content from another."""

    def made(self, installed: Installed) -> bool:
        """Whether the model was made of just this source, and of its present content."""
        return installed.origin == self.origin()

    @abstractmethod
    def metadata(self, note: Callable[[str], None]) -> dict[str, Any]:
        """The metadata that stands beside it; ``note`` is told what of it is left out."""

    @abstractmethod
    def copy(self, target: SparseWriter, tell: Tell) -> None:
        """Write it into ``target``; ``tell`` is told the bytes done and their total."""


def open_source(source: str | os.PathLike[str]) -> Source:
    """The source for a path or an http(s) URL.

    Raises `ConfigurationError` for other URLs, `ImageNotFoundError` if there is no such file, and
    `ImageInvalidError` for what cannot be an image.
    """
    if isinstance(source, str) and "://" in source:
        return UrlSource(source)
    return FileSource(Path(source))


def looks_like_source(selector: str | os.PathLike[str]) -> bool:
    """Whether ``selector`` means a path or a URL, and not the name of a model."""
    if not isinstance(selector, str):
        return True
    return "/" in selector or selector.lower().endswith(DISK_ENDINGS)


class FileSource(Source):
    """A disk image on this machine, with the metadata file that may stand beside it."""

    verb = "copying"
    digest_error = ImageInvalidError

    def __init__(self, path: Path) -> None:
        """Look whether there is such a file."""
        self.path = path.expanduser().absolute()
        self.shown = str(self.path)
        self.file_name = self.path.name
        if self.path.is_dir():
            raise ImageInvalidError(f"{self.shown} is a folder, no disk image", hint="give the file in it")
        if not self.path.exists():
            raise ImageNotFoundError(f"{self.shown}: there is no such file", hint="check the path")
        if not self.path.is_file():
            raise ImageInvalidError(f"{self.shown} is no regular file", hint="give a disk image's file")

    def origin(self) -> Origin:
        """Path, size, time of change, and the sidecar's digest."""
        with self._reading():
            status = self.path.stat()
        return Origin("file", self.shown, f"{status.st_size} {status.st_mtime_ns}", self._sidecar_digest)

    def suffix(self) -> str:
        """Eight digits of a digest of disk and sidecar."""
        return hashlib.sha256(f"{self._digest} {self._sidecar_digest}".encode()).hexdigest()[:8]

    def made(self, installed: Installed) -> bool:
        """The same, and also for a file with the same content at another place or of another time."""
        if super().made(installed):
            return True
        of_file = installed.origin.kind == "file" and installed.origin.sidecar == self._sidecar_digest
        return of_file and installed.model.sha256 == self._digest

    def metadata(self, note: Callable[[str], None]) -> dict[str, Any]:
        """What the sidecar says, if there is one."""
        sidecar = sidecar_of(self.path)
        return read_sidecar(sidecar, note) if sidecar else {}

    def copy(self, target: SparseWriter, tell: Tell) -> None:
        """Copy the file; `ImageInvalidError` if it cannot be read, or changes meanwhile."""
        before = self.origin()
        with self._reading():
            file = self.path.open("rb")
        with file:
            total = os.fstat(file.fileno()).st_size
            while True:
                with self._reading():
                    data = file.read(CHUNK_BYTES)
                if not data:
                    break
                target.write(data)
                tell(target.written, total)
        if self.origin() != before:
            raise ImageInvalidError(
                f"{self.shown} changed while it was copied", hint="stop what writes to it, and add it again"
            )

    @cached_property
    def _digest(self) -> str:
        with self._reading():
            return file_digest(self.path)

    @cached_property
    def _sidecar_digest(self) -> str:
        sidecar = sidecar_of(self.path)
        if sidecar is None:
            return ""
        with self._reading():
            return file_digest(sidecar)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell trouble with the source apart from trouble with the store."""
        try:
            yield
        except OSError as error:
            shown = error.filename or self.shown
            raise ImageInvalidError(
                f"{shown} cannot be read: {error.strerror}", hint="check the file and its permissions"
            ) from None


class UrlSource(Source):
    """A disk image behind an http(s) URL. What a URL gives is taken to stay the same."""

    verb = "downloading"
    digest_error = ImageFetchError

    def __init__(self, url: str) -> None:
        """Look whether the URL can be one of an image; nothing is asked of the network."""
        parts = urlsplit(url)
        self.url = url
        self.shown = without_credentials(url)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"{self.shown} is no URL that images can be fetched from", hint="give http://… or https://…"
            )
        self.file_name = unquote(PurePosixPath(parts.path).name)
        refuse_by_ending(self.shown, self.file_name)

    def origin(self) -> Origin:
        """The URL, and a digest that tells it from others that are shown alike."""
        parts = urlsplit(self.url)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
        return Origin("url", self.shown, hashlib.sha256(bare.encode("utf-8", "replace")).hexdigest())

    def suffix(self) -> str:
        """Eight digits of the URL's digest."""
        return self.origin().stamp[:8]

    def metadata(self, note: Callable[[str], None]) -> dict[str, Any]:
        """Nothing: beside a URL no metadata are looked for."""
        return {}

    def copy(self, target: SparseWriter, tell: Tell) -> None:
        """Download it; `ImageFetchError` tells what went wrong."""
        # Loaded when needed: it brings in the standard library's TLS, and requests.
        from pytest_vmfest.images.fetch import fetch

        fetch(self.url, target, tell, shown=self.shown)


def without_credentials(url: str) -> str:
    """``url`` as it may be shown: without user, password, query (which may be a signature) and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
