"""Copying trees through an SFTP session, and saying why one could not be copied."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from typing import TYPE_CHECKING, cast

from paramiko import SFTPClient

from pytest_vmfest.errors import TransferError
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS
from pytest_vmfest.ssh.sftp import CHUNK_BYTES
from pytest_vmfest.ssh.trouble import reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from paramiko import SFTPAttributes

    from pytest_vmfest.ssh.sftp import SftpSession

_PERMISSIONS = 0o777


class Upload:
    """One put."""

    def __init__(self, session: SftpSession, where: str) -> None:
        self._session = session
        self._where = where

    def put(self, local: Path, remote: str, mode: int) -> None:
        """Copy ``local``, of ``mode``, to be ``remote``."""
        what = f"put {local} to {self._where}:{remote}"
        with refusals(what, self._session, remote):
            if stat.S_ISDIR(mode):
                self._put_folder(what, local, remote, mode & _PERMISSIONS)
            elif stat.S_ISLNK(mode):
                self._put_link(what, local, remote)
            elif stat.S_ISREG(mode):
                write_file(self._session, remote, _chunks(what, local), mode & _PERMISSIONS)
            else:
                raise TransferError(f"{what}: it is no file, folder or link, but a {_kind(mode)}")

    def _put_folder(self, what: str, local: Path, remote: str, mode: int) -> None:
        with local_errors(what, local):
            entries = sorted(os.scandir(local), key=lambda entry: entry.name)
        _make_folder(self._session, remote, mode | stat.S_IRWXU)
        for entry in entries:
            with local_errors(what, local):
                entry_mode = entry.stat(follow_symlinks=False).st_mode
            self.put(local / entry.name, posixpath.join(remote, entry.name), entry_mode)
        self._session.ask(SFTPClient.chmod, encoded(remote), mode)

    def _put_link(self, what: str, local: Path, remote: str) -> None:
        with local_errors(what, local):
            points_to = os.fsencode(local.readlink())
        try:
            self._session.ask(SFTPClient.symlink, points_to, encoded(remote))
        except OSError:
            attributes = self._session.ask(SFTPClient.lstat, encoded(remote))
            if not stat.S_ISLNK(attributes.st_mode or 0):
                raise
            self._session.ask(SFTPClient.remove, encoded(remote))
            self._session.ask(SFTPClient.symlink, points_to, encoded(remote))


class Download:
    """One get. What the guest sends is not trusted to stay inside the folder that is made of it."""

    def __init__(self, session: SftpSession, where: str) -> None:
        self._session = session
        self._where = where

    def get(self, remote: str, local: Path, attributes: SFTPAttributes, *, inner: bool = False) -> None:
        """Copy ``remote``, of ``attributes``, to be ``local``; an ``inner`` one follows no local link."""
        what = f"get {self._where}:{remote} to {local}"
        mode = attributes.st_mode or 0
        with refusals(what, self._session, remote):
            if stat.S_ISDIR(mode):
                self._get_folder(what, remote, local, mode & _PERMISSIONS, inner=inner)
            elif stat.S_ISLNK(mode):
                points_to = self._session.ask(SFTPClient.readlink, encoded(remote)) or ""
                with local_errors(what, local):
                    if local.is_symlink():
                        local.unlink()
                    local.symlink_to(points_to)
            elif stat.S_ISREG(mode):
                self._get_file(what, remote, local, attributes, inner=inner)
            else:
                raise TransferError(f"{what}: it is no file, folder or link, but a {_kind(mode)}")

    def _get_folder(self, what: str, remote: str, local: Path, mode: int, *, inner: bool) -> None:
        # The library takes bytes here as well, its type stubs do not.
        entries = self._session.ask(SFTPClient.listdir_attr, cast("str", encoded(remote)))
        with local_errors(what, local):
            try:
                local.mkdir(mode=mode | stat.S_IRWXU)
            except FileExistsError:
                if not local.is_dir() or (inner and local.is_symlink()):
                    raise
        for entry in sorted(entries, key=lambda entry: entry.filename):
            if "/" in entry.filename or "\0" in entry.filename:
                raise TransferError(f"{what}: the guest lists an impossible name: {entry.filename!r}")
            self.get(posixpath.join(remote, entry.filename), local / entry.filename, entry, inner=True)
        with local_errors(what, local):
            local.chmod(mode)

    def _get_file(
        self, what: str, remote: str, local: Path, attributes: SFTPAttributes, *, inner: bool
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_NOFOLLOW if inner else 0)
        chunks = self._session.read_file(encoded(remote), attributes.st_size or 0)
        with local_errors(what, local):
            file = os.fdopen(os.open(local, flags, 0o600), "wb", buffering=0)
        with file, contextlib.closing(chunks), _whole_or_none(local, file.fileno()):
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    with local_errors(what, local):
                        rest = rest[file.write(rest) :]
            with local_errors(what, local):
                os.fchmod(file.fileno(), (attributes.st_mode or 0) & _PERMISSIONS)


@contextlib.contextmanager
def _whole_or_none(path: Path, descriptor: int) -> Iterator[None]:
    """Remove the file that is written in the block if it does not get done."""
    try:
        yield
    except BaseException:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            path.resolve().unlink(missing_ok=True)
        raise


def encoded(remote: str) -> bytes:
    """A remote path as it is sent."""
    path = remote.encode(ENCODING, ENCODING_ERRORS)
    if b"\0" in path or not path:
        raise TransferError(f"{remote!r} is no path in the guest")
    return path


def remote_target(session: SftpSession, remote: str, name: str) -> str:
    """Where a copy named ``name`` goes: into ``remote`` if that is a folder, else there; parents are made."""
    try:
        attributes = session.ask(SFTPClient.stat, encoded(remote))
    except FileNotFoundError:
        _make_folders(session, posixpath.dirname(remote))
        is_folder = remote.endswith("/")
    else:
        is_folder = stat.S_ISDIR(attributes.st_mode or 0)
    return posixpath.join(remote, name) if is_folder else remote


def _make_folders(session: SftpSession, remote: str) -> None:
    """Make the folder ``remote`` and those above it, as far as they are missing."""
    if not remote:
        return
    try:
        session.ask(SFTPClient.stat, encoded(remote))
    except FileNotFoundError:
        _make_folders(session, posixpath.dirname(remote.rstrip("/")))
        session.ask(SFTPClient.mkdir, encoded(remote), 0o777)


def _make_folder(session: SftpSession, remote: str, mode: int) -> None:
    """Make one folder; one that is there already is fine."""
    try:
        session.ask(SFTPClient.mkdir, encoded(remote), mode)
    except OSError:
        if not stat.S_ISDIR(session.ask(SFTPClient.stat, encoded(remote)).st_mode or 0):
            raise


def write_file(session: SftpSession, remote: str, chunks: Iterable[bytes], mode: int | None) -> None:
    """Write a file, and make the folders above it if they are missing."""
    try:
        session.write_file(encoded(remote), chunks, mode)
    except FileNotFoundError:
        # Nothing was read from chunks yet: the file could not be opened.
        _make_folders(session, posixpath.dirname(remote))
        session.write_file(encoded(remote), chunks, mode)


def _chunks(what: str, local: Path) -> Iterator[bytes]:
    with local_errors(what, local):
        file = local.open("rb", buffering=0)
    with file:
        while True:
            with local_errors(what, local):
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _kind(mode: int) -> str:
    """A special file's kind, from its mode."""
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device"}
    return kinds.get(stat.S_IFMT(mode), "character device" if stat.S_ISCHR(mode) else "special file")


@contextlib.contextmanager
def local_errors(what: str, path: Path) -> Iterator[None]:
    """Say of an error on this host what failed thereby, and where."""
    try:
        yield
    except OSError as error:
        raise TransferError(f"{what}: {reason(error)} (on this host: {error.filename or path})") from error


@contextlib.contextmanager
def refusals(what: str, session: SftpSession, remote: str) -> Iterator[None]:
    """Say of an error that the guest answers with what failed thereby, and why."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise TransferError(f"{what}: a name in the guest is not in UTF-8: {error.object!r}") from error
    except OSError as error:
        if session.channel.closed:
            raise
        raise TransferError(f"{what}: {_why(error, session, remote)}") from error


def _why(error: OSError, session: SftpSession, remote: str) -> str:
    """What the guest means. Version 3 of SFTP has a code for little more than missing and forbidden."""
    if error.errno == errno.ENOENT:
        return "there is no such file or folder in the guest"
    if error.errno == errno.EACCES:
        return "the guest denies permission"
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(session.ask(SFTPClient.stat, encoded(remote)).st_mode or 0):
            return "in the guest it is a folder"
    if session.is_full(encoded(posixpath.dirname(remote) or ".")):
        return "no space is left on the guest's disk"
    return f"the guest refused, saying only {reason(error)!r}"
