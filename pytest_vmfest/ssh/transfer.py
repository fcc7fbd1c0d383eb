"""The guest's files: which SFTP session is used for them, and until when."""

from __future__ import annotations

import contextlib
import posixpath
import threading
from typing import TYPE_CHECKING

from paramiko import SFTPClient, SFTPError, SSHException

from pytest_vmfest.errors import TransferError
from pytest_vmfest.ssh.background import OutOfTimeError
from pytest_vmfest.ssh.copying import (
    Download,
    Upload,
    encoded,
    local_errors,
    refusals,
    remote_target,
    write_file,
)
from pytest_vmfest.ssh.protocol import open_channel
from pytest_vmfest.ssh.sftp import CHUNK_BYTES, SftpSession
from pytest_vmfest.ssh.trouble import broken, lost, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paramiko import Channel

    from pytest_vmfest.ssh.protocol import GuestTransport
    from pytest_vmfest.ssh.wire import Wire
    from pytest_vmfest.waiting import Deadline


class Files:
    """The guest's files. One SFTP session serves all calls, one after the other; it is opened when needed.

    Remote paths are the guest's; relative ones start in the login user's home. They are text, in UTF-8.
    """

    def __init__(self, transport: GuestTransport, wire: Wire, where: str) -> None:
        """``where`` ("root@127.0.0.1:22") stands in messages."""
        self._transport = transport
        self._wire = wire
        self._where = where
        self._lock = threading.Lock()
        self._session: SftpSession | None = None

    def put(self, local: Path, remote: str, deadline: Deadline) -> None:
        """Copy to the guest; `SshRemote.put` says the rest."""
        what = f"put {local} to {self._where}:{remote}"
        with local_errors(what, local):
            mode = local.stat().st_mode
            name = local.name if local.name not in ("", "..") else local.resolve().name
        with self._use(what, deadline) as session:
            with refusals(what, session, remote):
                target = remote_target(session, remote, name)
            Upload(session, self._where).put(local, target, mode)

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy from the guest; `SshRemote.get` says the rest."""
        what = f"get {self._where}:{remote} to {local}"
        with self._use(what, deadline) as session:
            with refusals(what, session, remote):
                attributes = session.ask(SFTPClient.stat, encoded(remote))
                name = posixpath.basename(remote.rstrip("/"))
                if name in ("", ".", ".."):
                    name = posixpath.basename(session.ask(SFTPClient.normalize, encoded(remote)))
            with local_errors(what, local):
                if local.is_dir():
                    local /= name
                else:
                    local.parent.mkdir(parents=True, exist_ok=True)
            Download(session, self._where).get(remote, local, attributes)

    def read_bytes(self, remote: str, deadline: Deadline) -> bytes:
        """The content of a file, also of one in ``/proc``."""
        what = f"read {self._where}:{remote}"
        with self._use(what, deadline) as session, refusals(what, session, remote):
            size = session.ask(SFTPClient.stat, encoded(remote)).st_size
            return b"".join(session.read_file(encoded(remote), size or 0))

    def write_bytes(self, remote: str, data: bytes, deadline: Deadline) -> None:
        """Create or replace a file, and the folders above it. A file that is there keeps its mode."""
        what = f"write {len(data)} bytes to {self._where}:{remote}"
        chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        with self._use(what, deadline) as session, refusals(what, session, remote):
            write_file(session, remote, chunks, None)

    def close(self) -> None:
        """Forget the session; the connection that ends takes it along."""
        self._session = None

    @contextlib.contextmanager
    def _use(self, what: str, deadline: Deadline) -> Iterator[SftpSession]:
        """The session, for this thread alone; given up when it is left in an unknown state."""
        late = TransferError(f"{what}: not done within {deadline.timeout_s or 0:g} s")
        timeout_s = deadline.timeout()
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise late
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.enter_context(self._wire.busy(deadline))
            try:
                yield self._opened(what, deadline)
            except TransferError:
                raise
            except OutOfTimeError:
                self._drop()
                raise late from None
            except (SSHException, SFTPError, EOFError, OSError) as error:
                self._drop()
                if broken(self._transport):
                    raise late if deadline.expired else lost(what, error) from error
                raise TransferError(f"{what}: the SFTP session broke: {reason(error)}") from error
            except BaseException:
                self._drop()
                raise

    def _opened(self, what: str, deadline: Deadline) -> SftpSession:
        if self._session is None or self._session.channel.closed:
            try:
                channel = open_channel(self._transport, lambda c: c.invoke_subsystem("sftp"), deadline)
                self._session = _greeted(channel, deadline)
            except (SSHException, SFTPError, EOFError, OSError) as error:
                if broken(self._transport):
                    raise
                raise TransferError(
                    f"{what}: the guest offers no SFTP: {reason(error)}",
                    hint="install openssh-sftp-server in the image, or put 'Subsystem sftp internal-sftp' "
                    "into its sshd_config; a login shell that prints something at once breaks SFTP, too",
                ) from error
        self._session.deadline = deadline
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                session.close()


def _greeted(channel: Channel, deadline: Deadline) -> SftpSession:
    try:
        return SftpSession(channel, deadline)
    except BaseException:
        with contextlib.suppress(Exception):
            channel.close()
        raise
