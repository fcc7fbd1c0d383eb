"""The socket under an SSH session, when the guest takes no more data."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_vmfest.ssh import wire as wire_module
from pytest_vmfest.ssh.wire import Wire
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Wire, socket.socket]]:
    """A wire that gives up soon, and the guest's end of it."""
    monkeypatch.setattr(wire_module, "_STUCK_S", 0.05)
    ours, guests = socket.socketpair()
    wire = Wire(ours, b"SSH-2.0-x\r\n")
    wire.settimeout(0.02)
    with guests:
        yield wire, guests
        wire.close()


def _send_all(wire: Wire) -> None:
    """Write until the guest's end takes no more."""
    while True:
        wire.send(bytes(65536))


def _fill(wire: Wire) -> None:
    with pytest.raises(TimeoutError):
        _send_all(wire)


def _insist(wire: Wire) -> None:
    """Write as the library does: a write that took too long is made again."""
    while True:
        try:
            wire.send(b"x")
        except TimeoutError:
            continue
        return


def test_what_was_read_before_comes_first(ends: tuple[Wire, socket.socket]) -> None:
    """Bytes that were read from the socket before it became a wire are not lost."""
    wire, guests = ends
    guests.sendall(b"after")

    assert [wire.recv(4), wire.recv(100), wire.recv(100)] == [b"SSH-", b"2.0-x\r\n", b"after"]


def test_a_slow_guest_is_waited_for(ends: tuple[Wire, socket.socket]) -> None:
    """As long as all operations have time left, a blocked write is just not done yet."""
    wire, guests = ends
    with wire.busy(Deadline(60)):
        _fill(wire)
        for _ in range(5):
            _fill(wire)
        drain = threading.Thread(target=guests.recv, args=(1 << 24, socket.MSG_WAITALL))
        drain.start()
        _insist(wire)
    wire.close()
    drain.join(5)


def test_a_stuck_write_ends_after_a_deadline(ends: tuple[Wire, socket.socket]) -> None:
    """When an operation is out of time and nothing gets through, the connection is closed."""
    wire, guests = ends
    with wire.busy(Deadline(60)), wire.busy(Deadline(0)):
        _fill(wire)
        with pytest.raises(ConnectionError, match="takes no data"):
            _insist(wire)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wire.send(b"x")
    guests.settimeout(5)
    while guests.recv(1 << 20):
        pass  # ends, for our end is closed


def test_an_operation_that_is_over_does_not_count(ends: tuple[Wire, socket.socket]) -> None:
    """The deadline of an operation that has ended closes nothing."""
    wire, _ = ends
    with wire.busy(Deadline(0)):
        pass
    for _ in range(6):
        _fill(wire)


def test_close_wakes_a_reader(ends: tuple[Wire, socket.socket]) -> None:
    """A thread that waits for data learns at once that the wire was closed."""
    wire, _ = ends
    wire.settimeout(None)
    wire.recv(100)

    def read() -> None:
        # Nothing to read, or no socket any more if the thread comes late.
        with contextlib.suppress(OSError):
            assert wire.recv(1) == b""

    reader = threading.Thread(target=read)
    reader.start()

    wire.close()
    wire.close()
    reader.join(5)

    assert not reader.is_alive()
