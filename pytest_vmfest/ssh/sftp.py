"""One SFTP session (version 3, draft-ietf-secsh-filexfer-02), its requests kept under way.

The library's own pipelines lose errors of the last writes, and leave a thread behind when reading is given
up; so reads and writes are sent ahead here, over the library's session, from the calling thread alone.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from paramiko import SFTPAttributes, SFTPClient, SFTPError
from paramiko.sftp import (
    CMD_CLOSE,
    CMD_DATA,
    CMD_EXTENDED,
    CMD_EXTENDED_REPLY,
    CMD_FSETSTAT,
    CMD_HANDLE,
    CMD_OPEN,
    CMD_READ,
    CMD_STATUS,
    CMD_WRITE,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_READ,
    SFTP_FLAG_TRUNC,
    SFTP_FLAG_WRITE,
    int64,
)

from pytest_vmfest.ssh.background import OutOfTimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from paramiko import Channel, Message

    from pytest_vmfest.waiting import Deadline

P = ParamSpec("P")
R = TypeVar("R")

# A little less than an SSH packet, so that each request and each answer is one.
CHUNK_BYTES = 32 * 1024 - 1024
_MOST_REQUESTS = 32
# When less than this is free, a write that fails without a reason failed for want of space.
_FULL_BYTES = 64 * 1024


class SftpSession:
    """An SFTP session on ``channel``, used by one thread at a time.

    ``deadline`` counts for every call; `OutOfTimeError` is raised past it, and the session is of no use then.
    The guest's refusals are `OSError`s, those of the connection `SSHException` and `EOFError`.
    """

    def __init__(self, channel: Channel, deadline: Deadline) -> None:
        """Greet the server, which must run on the channel already."""
        self.channel = channel
        self.deadline = deadline
        # Any: the type stubs leave out what begins with an underscore.
        self._client: Any = self._within(lambda: SFTPClient(channel))

    def ask(self, call: Callable[Concatenate[SFTPClient, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One of the library's own requests: ``ask(SFTPClient.mkdir, path)``."""
        return self._within(lambda: call(self._client, *args, **kwargs))

    def read_file(self, path: bytes, size: int) -> Generator[bytes, None, None]:
        """The content of a file, in pieces, up to its end wherever that is.

        ``size`` is what to ask for ahead. It may be wrong: files of ``/proc`` claim to be empty, others grow.
        """
        with self._opened(path, SFTP_FLAG_READ) as handle:
            requests = _Requests(self)
            # One more than what is said to be there: it finds the end.
            ahead = itertools.chain(range(0, size, CHUNK_BYTES), (size,))
            at = 0
            while True:
                while len(requests) < _MOST_REQUESTS and (offset := next(ahead, None)) is not None:
                    length = min(CHUNK_BYTES, size - offset) if offset < size else CHUNK_BYTES
                    requests.send(CMD_READ, handle, int64(offset), length)
                if not len(requests):
                    requests.send(CMD_READ, handle, int64(at), CHUNK_BYTES)
                wanted, data = requests.next_data()
                if data is None:
                    return
                yield data
                at += len(data)
                if len(data) < wanted:
                    # The rest is elsewhere than it was asked for, or nowhere.
                    requests, ahead = _Requests(self), itertools.chain()

    def write_file(self, path: bytes, chunks: Iterable[bytes], mode: int | None) -> None:
        """Create or replace a file. Its permission bits are ``mode`` from before the first byte on."""
        with self._opened(path, SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_TRUNC) as handle:
            requests = _Requests(self)
            if mode is not None:
                attributes = SFTPAttributes()
                attributes.st_mode = mode
                requests.send(CMD_FSETSTAT, handle, attributes)
            at = 0
            for chunk in chunks:
                while len(requests) >= _MOST_REQUESTS:
                    requests.next_status()
                requests.send(CMD_WRITE, handle, int64(at), chunk)
                at += len(chunk)
            while len(requests):
                requests.next_status()

    def is_full(self, path: bytes) -> bool:
        """Whether the file system of ``path`` has no room left, as far as the server can tell."""
        try:
            kind, reply = self._request(CMD_EXTENDED, "statvfs@openssh.com", path)
        except OSError:
            return False
        if kind != CMD_EXTENDED_REPLY:
            return False
        # OpenSSH's PROTOCOL, section 4.4: bsize frsize blocks bfree bavail files ffree favail …
        _, fragment, _, _, available, files, _, files_available = struct.unpack(">8Q", reply.get_bytes(64))
        return bool(available * fragment < _FULL_BYTES or (files and not files_available))

    def close(self) -> None:
        """End the session."""
        self.channel.close()

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int) -> Iterator[bytes]:
        """A handle of the file."""
        kind, reply = self._request(CMD_OPEN, path, flags, SFTPAttributes())
        if kind != CMD_HANDLE:
            raise SFTPError(f"expected a handle, got message {kind}")
        handle = reply.get_string()
        try:
            yield handle
        finally:
            self._request(CMD_CLOSE, handle)

    def _request(self, command: int, *arguments: object) -> tuple[int, Message]:
        answer: tuple[int, Message] = self._within(lambda: self._client._request(command, *arguments))
        return answer

    def _within(self, call: Callable[[], R]) -> R:
        """Make a call of the library's that blocks in the channel, no longer than the deadline allows."""
        if self.deadline.expired:
            raise OutOfTimeError
        self.channel.settimeout(self.deadline.timeout())
        try:
            return call()
        except TimeoutError:
            raise OutOfTimeError from None


class _Requests:
    """Requests under way in one session, answered in the order in which they were sent."""

    def __init__(self, session: SftpSession) -> None:
        self._session = session
        self._numbers: deque[tuple[int, int]] = deque()
        self._answers: dict[int, tuple[int, Message]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def send(self, command: int, handle: bytes, *arguments: Any) -> None:
        """Send one, without waiting for its answer."""
        client = self._session._client
        number = self._session._within(lambda: client._async_request(self, command, handle, *arguments))
        size = arguments[-1] if command == CMD_READ else 0
        self._numbers.append((number, size))

    def next_status(self) -> None:
        """Wait for the oldest one's answer; raises `OSError` if the guest refused it."""
        _, kind, message = self._next()
        if kind != CMD_STATUS:
            raise SFTPError(f"expected a status, got message {kind}")
        self._session._client._convert_status(message)

    def next_data(self) -> tuple[int, bytes | None]:
        """The number of bytes that the oldest read asked for, and what it got: None at the file's end."""
        size, kind, message = self._next()
        if kind == CMD_STATUS:
            try:
                self._session._client._convert_status(message)
            except EOFError:
                return size, None
        if kind != CMD_DATA:
            raise SFTPError(f"expected data, got message {kind}")
        return size, message.get_string()

    def _next(self) -> tuple[int, int, Message]:
        number, size = self._numbers.popleft()
        while number not in self._answers:
            self._session._within(self._session._client._read_response)
        return size, *self._answers.pop(number)

    def _async_response(self, kind: int, message: Message, number: int) -> None:
        """Take an answer; the library calls this."""
        self._answers[number] = kind, message
