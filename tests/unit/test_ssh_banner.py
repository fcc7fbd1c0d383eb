"""Waiting until SSH answers: slow, stalling, refusing and foreign servers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from ssh_server import Server, serving

from pytest_vmfest.errors import RemoteError, WaitTimeoutError
from pytest_vmfest.specs import Endpoint
from pytest_vmfest.ssh import banner
from pytest_vmfest.ssh.banner import await_banner
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second attempts after a tenth of a second."""
    monkeypatch.setattr(banner, "_SHORTEST_HEDGE_S", 0.1)


def _until_closed(sock: socket.socket) -> None:
    while sock.recv(1024):
        pass


def _greet(sock: socket.socket) -> None:
    sock.sendall(BANNER)
    _until_closed(sock)


def _in_turn(*serves: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Treat the first connection by the first of ``serves``, …, and all further ones by the last."""
    lock, turn = threading.Lock(), iter(serves)

    def serve(sock: socket.socket) -> None:
        with lock:
            chosen = next(turn, serves[-1])
        chosen(sock)

    return serve


def _await(server: Server, timeout_s: float = 20, **more: Callable[[], None]) -> bytes:
    sock, received = await_banner(server.endpoint, Deadline(timeout_s), **more)
    sock.close()
    return received


def _all_closed_by_client(server: Server) -> bool:
    """Whether every connection to ``server`` was closed by us; its threads then end by themselves."""
    for thread in server._threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in server._threads)


def test_the_socket_and_what_was_read_are_handed_over() -> None:
    """The banner's bytes come with the socket, which goes on where they ended, without small-packet delay."""

    def echo(sock: socket.socket) -> None:
        sock.sendall(BANNER)
        sock.sendall(sock.recv(9))

    with serving(echo) as server:
        sock, received = await_banner(server.endpoint, Deadline(20))
        with sock:
            assert received == BANNER
            sock.sendall(b"more data")
            assert sock.recv(100) == b"more data"
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_opens_late() -> None:
    """Connections that are refused are repeated until the port is open; then it is said that it is."""
    accepted: list[bool] = []
    looks = 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))

        def accept() -> None:
            with listener.accept()[0] as accepted_socket:
                _greet(accepted_socket)

        greeting = threading.Thread(target=accept)

        def watch() -> None:
            nonlocal looks
            looks += 1
            if looks == 4:
                assert not accepted
                listener.listen()
                greeting.start()

        endpoint = Endpoint(*listener.getsockname())
        sock, received = await_banner(
            endpoint, Deadline(20), watch=watch, on_connect=lambda: accepted.append(True)
        )
        sock.close()
        greeting.join(5)

    assert received == BANNER
    assert accepted == [True]


def test_a_server_that_closes_at_once_is_asked_again() -> None:
    """QEMU's user network does that for a guest that runs, but does not listen yet."""
    with serving(_in_turn(*[lambda sock: None] * 4, _greet)) as server:
        assert _await(server) == BANNER
        assert server.connections == 5


def test_a_server_that_speaks_late_is_waited_for() -> None:
    """A slow guest gets its time: it is not flooded, and the banner is taken when it comes."""
    speak = threading.Event()
    with serving(lambda sock: (speak.wait(20), _greet(sock))) as server:
        looks = iter(range(3))

        def watch() -> None:
            if next(looks, None) is None:
                speak.set()

        assert _await(server, watch=watch) == BANNER
        assert server.connections <= 3


@pytest.mark.usefixtures("impatient")
def test_a_stalled_connection_does_not_hold_up() -> None:
    """A second connection overtakes one that hangs, as one made before the guest's network was up does."""
    with serving(_in_turn(_until_closed, _greet)) as server:
        assert _await(server) == BANNER
        assert server.connections == 2
        assert _all_closed_by_client(server)


@pytest.mark.usefixtures("impatient")
def test_a_slow_first_connection_may_still_win() -> None:
    """The first connection to show a banner is taken, whichever it is."""
    second = threading.Event()

    def slow(sock: socket.socket) -> None:
        second.wait(20)
        _greet(sock)

    def stalled(sock: socket.socket) -> None:
        second.set()
        _until_closed(sock)

    with serving(_in_turn(slow, stalled)) as server:
        assert _await(server) == BANNER


def test_silence_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the deadline the error says what was missing; few connections were open, none is left."""
    monkeypatch.setattr(banner, "_SHORTEST_HEDGE_S", 0.02)
    attempts: list[banner._Attempt] = []

    class Counted(banner._Attempt):
        def __init__(self, *arguments: object) -> None:
            attempts.append(self)
            super().__init__(*arguments)

    def open_now() -> int:
        return sum(attempt.socket.fileno() != -1 for attempt in attempts)

    monkeypatch.setattr(banner, "_Attempt", Counted)
    looked: list[int] = []
    with serving(_until_closed) as server:
        with pytest.raises(WaitTimeoutError, match=rf"{server.endpoint}.*no SSH banner.*0.6 s"):
            _await(server, 0.6, watch=lambda: looked.append(open_now()))
        assert _all_closed_by_client(server)
    assert len(attempts) > banner._MOST_ATTEMPTS
    assert max(looked) == banner._MOST_ATTEMPTS
    assert open_now() == 0


def test_a_closed_port_times_out() -> None:
    """Where nobody listens, the error says so, and what the last try met with."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(WaitTimeoutError, match=r"accepted no connection within 0\.1 s.*refused"):
            await_banner(Endpoint(*bound.getsockname()), Deadline(0.1))


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x4a\0\0\0\x0a8.0.39\0"])
def test_another_protocol_that_hangs_up(greeting: bytes) -> None:
    """What speaks something else than SSH is named at once, with its words."""
    with serving(lambda sock: sock.sendall(greeting)) as server:
        started = time.monotonic()
        with pytest.raises(RemoteError, match=rf"{server.endpoint}.*not SSH.*(HTTP/1.1 400|8.0.39)"):
            _await(server)
        assert time.monotonic() - started < 5


def test_another_protocol_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when it waits for an answer after its greeting."""
    monkeypatch.setattr(banner, "_FOREIGN_S", 0.05)

    def smtp(sock: socket.socket) -> None:
        sock.sendall(b"220 mail.example ESMTP\r\n")
        _until_closed(sock)

    with serving(smtp) as server:
        with pytest.raises(RemoteError, match=r"220 mail.example"):
            _await(server)
        assert _all_closed_by_client(server)


def test_lines_before_the_banner_are_allowed() -> None:
    """RFC 4253, section 4.2 lets a server say something first, and in pieces."""
    with serving(
        lambda sock: [sock.sendall(part) for part in (b"wel", b"come\r\nSS", b"H-2.0-x\r\n")]
    ) as server:
        assert _await(server).startswith(b"welcome\r\nSSH-")


def test_a_busy_sshd_is_asked_again() -> None:
    """OpenSSH turns connections away when it has too many; it says so in words that are no banner."""
    with serving(_in_turn(lambda sock: sock.sendall(b"Exceeded MaxStartups\r\n"), _greet)) as server:
        assert _await(server) == BANNER
        assert server.connections == 2


def test_watch_ends_the_wait() -> None:
    """What ``watch`` raises comes through, and no socket stays open."""

    class MachineDiedError(Exception):
        pass

    looks = iter(range(3))

    def watch() -> None:
        if next(looks, None) is None:
            raise MachineDiedError

    with serving(_until_closed) as server:
        with pytest.raises(MachineDiedError):
            _await(server, watch=watch)
        assert _all_closed_by_client(server)


def test_a_connection_to_itself_is_no_connection() -> None:
    """A free local port that is also the one picked to connect from connects to itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
        probe.connect(address)
        attempt = banner._Attempt(socket.AF_INET, address)
        attempt.socket.close()
        attempt.socket = probe

        with pytest.raises(ConnectionRefusedError):
            attempt.advance()


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is told as such."""

    def fail(*arguments: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    with pytest.raises(RemoteError, match=r"guest.example:22.*no address"):
        await_banner(Endpoint("guest.example", 22), Deadline(20))


def test_an_error_that_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble of this host's own ends the wait at once."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(banner, "_Attempt", fail)

    with pytest.raises(RemoteError, match="Too many open files"):
        await_banner(Endpoint("127.0.0.1", 22), Deadline(20))
