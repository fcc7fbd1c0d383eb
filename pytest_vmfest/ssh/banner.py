"""Readiness: a connection on which an SSH server has said its name.

A TCP connection proves nothing. QEMU's user network (libslirp) accepts for the guest before the guest does:
when nobody listens there yet it closes the connection again, and when the guest's network is not up yet it
repeats its SYN to the guest only after 6 s and then every 12 s (TCPTV_SRTTDFLT, TCPTV_REXMTMAX), so that a
connection made too early hangs. An emulated guest may, on the other hand, take seconds from accepting to
its banner, and each connection costs it a process. So a few connections are kept waiting, begun at
intervals that grow with the time waited: what is lost stays a small share of the whole, and a slow guest is
not flooded. The first to show a banner wins.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING

from pytest_vmfest.errors import RemoteError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.specs import Endpoint
    from pytest_vmfest.waiting import Deadline

_WATCH_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.2
_GROWTH = 1.5
# A guest that took ten seconds to come so far is asked again after one more.
_SHORTEST_HEDGE_S, _HEDGE_SHARE = 0.2, 0.1
# So many that an attempt is given up only after 0.4 of the time waited so far: an overloaded guest may take
# seconds to greet. No more than an sshd answers before logins (MaxStartups), and far fewer than make OpenSSH
# 9.8 and newer shut the host out for a while: fifteen that left without a login (PerSourcePenalties).
_MOST_ATTEMPTS = 6

# What cannot be an SSH banner's beginning is given this long to become one: RFC 4253, section 4.2 allows
# a server to send other lines first.
_FOREIGN_S = 2.0
_FOREIGN_BYTES = 8192
# OpenSSH says so, then closes, when too many logins are under way, or too many failed.
_SSHD_REFUSALS = (b"Exceeded MaxStartups", b"Not allowed at this time")

_NOT_YET = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.EHOSTDOWN,
    errno.ENETUNREACH,
    errno.ENETDOWN,
    # A host name may have addresses of a kind that this host does not use.
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
}


def await_banner(
    endpoint: Endpoint,
    deadline: Deadline,
    *,
    watch: Callable[[], None] | None = None,
    on_connect: Callable[[], None] | None = None,
) -> tuple[socket.socket, bytes]:
    """Connect to ``endpoint`` and wait for an SSH banner; the socket, and the bytes read from it already.

    ``watch`` is called at least every 0.1 s and may raise; ``on_connect`` is called when the port first
    accepts a connection. Raises `WaitTimeoutError`, or `RemoteError` when something other than SSH answers.
    """
    hunt = _Hunt(endpoint)
    try:
        while True:
            if watch is not None:
                watch()
            hunt.start_what_is_due()
            found = hunt.look(min(_WATCH_S, deadline.remaining_s))
            if hunt.accepted and on_connect is not None:
                on_connect()
                on_connect = None
            if found is not None:
                return found.surrender()
            if deadline.expired:
                raise WaitTimeoutError(hunt.complaint(f"{deadline.timeout_s:g} s"))
    finally:
        hunt.close()


class _Attempt:
    """One connection that has not shown a banner yet."""

    def __init__(self, family: socket.AddressFamily, address: tuple[object, ...]) -> None:
        self.started = time.monotonic()
        self.connected = False
        self.received = b""
        self.spoke_at = 0.0
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        try:
            # Without it each of SSH's small packets waits for the acknowledgement of the one before.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = self.socket.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            self.socket.close()
            raise

    def advance(self) -> bool:
        """Take the step that the socket is ready for; whether the banner is there. Raises `OSError`."""
        if not self.connected:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if self.socket.getsockname() == self.socket.getpeername():
                # Linux joins a connection to a free local port with itself when it picks that very port.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            self.connected = True
            return False
        received = self.socket.recv(4096)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "closed without a word")
        self.spoke_at = self.spoke_at or time.monotonic()
        self.received += received
        return any(line.startswith(b"SSH-") for line in self.received.split(b"\n"))

    @property
    def foreign(self) -> bool:
        """Whether what was received cannot be, or become, SSH."""
        if not self.received or b"SSH-".startswith(self.received):
            return False
        if self.received.startswith(_SSHD_REFUSALS):
            return False
        return len(self.received) > _FOREIGN_BYTES or time.monotonic() - self.spoke_at > _FOREIGN_S

    def surrender(self) -> tuple[socket.socket, bytes]:
        """Give the socket away, blocking again."""
        self.socket.setblocking(True)
        return self.socket, self.received


class _Hunt:
    """All the attempts on one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.accepted = False
        self._endpoint = endpoint
        self._addresses = _resolve(endpoint)
        self._started = 0
        self._attempts: list[_Attempt] = []
        self._selector = selectors.DefaultSelector()
        self._began = self._next_at = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S
        self._last_failure = ""

    def start_what_is_due(self) -> None:
        """Begin another attempt if it is time; the oldest has to go when there are too many."""
        if time.monotonic() < self._next_at:
            return
        if len(self._attempts) == _MOST_ATTEMPTS:
            self._drop(self._attempts[0])
        family, address = self._addresses[self._started % len(self._addresses)]
        self._started += 1
        try:
            attempt = _Attempt(family, address)
        except OSError as error:
            self._failed(error)
            return
        self._attempts.append(attempt)
        self._selector.register(attempt.socket, selectors.EVENT_WRITE, attempt)
        waited_s = attempt.started - self._began
        self._next_at = attempt.started + max(_SHORTEST_HEDGE_S, _HEDGE_SHARE * waited_s)

    def look(self, timeout_s: float) -> _Attempt | None:
        """Wait until something happens, ``timeout_s`` at most; the attempt that has its banner, if any."""
        until_next_s = max(0.0, self._next_at - time.monotonic())
        for key, _ in self._selector.select(min(timeout_s, until_next_s)):
            attempt: _Attempt = key.data
            try:
                if attempt.advance():
                    self._selector.unregister(attempt.socket)
                    self._attempts.remove(attempt)
                    return attempt
            except OSError as error:
                self._drop(attempt)
                self._failed(error, said=attempt.received)
                continue
            self.accepted = self.accepted or attempt.connected
            self._selector.modify(attempt.socket, selectors.EVENT_READ, attempt)
        for attempt in self._attempts:
            if attempt.foreign:
                raise self._not_ssh(attempt.received)
        return None

    def _failed(self, error: OSError, *, said: bytes = b"") -> None:
        """Plan the next attempt after one that ended; raises if it is no use to try again."""
        if said and not said.startswith((*_SSHD_REFUSALS, b"SSH-"[: len(said)])):
            raise self._not_ssh(said)
        if error.errno not in _NOT_YET:
            raise RemoteError(f"{self._endpoint}: cannot connect: {error}") from error
        self._last_failure = said.decode("utf-8", "replace").strip() or str(error.strerror)
        self._next_at = time.monotonic() + self._pause_s
        self._pause_s = min(self._pause_s * _GROWTH, _LONGEST_PAUSE_S)

    def _drop(self, attempt: _Attempt) -> None:
        self._attempts.remove(attempt)
        self._selector.unregister(attempt.socket)
        attempt.socket.close()

    def close(self) -> None:
        """Close all attempts that are left."""
        for attempt in tuple(self._attempts):
            self._drop(attempt)
        self._selector.close()

    def complaint(self, waited: str) -> str:
        """What to say when time is up."""
        last = f" (last: {self._last_failure})" if self._last_failure else ""
        if not self.accepted:
            return f"{self._endpoint}: the port accepted no connection within {waited}{last}"
        return f"{self._endpoint}: the port accepts connections, but no SSH banner came within {waited}{last}"

    def _not_ssh(self, said: bytes) -> RemoteError:
        words = said[:80].decode("utf-8", "backslashreplace").strip()
        return RemoteError(
            f"{self._endpoint}: what answers there is not SSH, it said {words!r}",
            hint="check that the port leads to the guest's port 22",
        )


def _resolve(endpoint: Endpoint) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RemoteError(f"{endpoint}: the host's name has no address: {error}") from error
    return [(family, address) for family, _, _, _, address in found]
