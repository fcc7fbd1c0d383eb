"""The socket as the SSH library sees it: what was read already comes first, and no write blocks for ever."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vmfest.waiting import Deadline

# A guest that is merely slow drains its buffers more often than this.
_STUCK_S = 2.0


class Wire:
    """A connected socket with the few methods that `paramiko.Transport` calls.

    The library's writes know no deadline: one that a hung guest does not drain blocks its thread, and behind
    it every other user of the connection. So every operation on the connection says with `busy` until when
    it may last; a write that has got nothing through for two seconds, when one of these deadlines has
    passed, closes the connection, which frees all of them.
    """

    def __init__(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over ``sock``, from which ``received`` has been read already."""
        self._socket = sock
        self._received = received
        self._stuck_since: float | None = None
        self._deadlines: list[Deadline] = []
        self._closed = False

    @contextlib.contextmanager
    def busy(self, deadline: Deadline) -> Iterator[None]:
        """An operation that uses the connection until ``deadline``."""
        self._deadlines.append(deadline)
        try:
            yield
        finally:
            self._deadlines.remove(deadline)

    def settimeout(self, timeout_s: float | None) -> None:
        """How long `recv` and `send` may block before they raise `TimeoutError`."""
        self._socket.settimeout(timeout_s)

    def recv(self, size: int) -> bytes:
        """At most ``size`` bytes; none when the guest has closed the connection."""
        if not self._received:
            return self._socket.recv(size)
        piece, self._received = self._received[:size], self._received[size:]
        return piece

    def send(self, data: bytes) -> int:
        """Write some of ``data``; the number of bytes that were taken."""
        try:
            sent = self._socket.send(data)
        except TimeoutError:
            self._check_stuck()
            raise
        self._stuck_since = None
        return sent

    def _check_stuck(self) -> None:
        now = time.monotonic()
        if self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > _STUCK_S and any(d.expired for d in tuple(self._deadlines)):
            self.close()
            raise ConnectionError("the guest takes no data")

    def close(self) -> None:
        """Close, and wake a thread that waits in `recv` or `send`; allowed more than once."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
