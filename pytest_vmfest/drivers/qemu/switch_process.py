"""The process behind a private network: a learning Ethernet switch on a Unix socket.

Each connection is a port. Frames come and go as QEMU's ``-netdev stream`` sends them (``net/stream.c``, since
QEMU 7.2): their length as 4 bytes, big-endian, then the frame, without a vnet header.

``switch.py`` starts this file by its path and ends the process. It uses the standard library alone, and
little of that: it starts in the time of a bare interpreter.

It lives as long as somebody may need it: while the process that created it lives (machines may come late,
go and come again), and while any port is open (machines may be kept beyond the tests). Once the creator is
gone and no port is open for the seconds of grace, it ends by itself.
"""

from __future__ import annotations

import math
import os
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

SOCKET_NAME = "switch.sock"
READY = b"ready"

MAX_FRAME_BYTES = 65536
QUEUE_BYTES = 1 << 20
"""What may wait for one slow receiver; frames beyond it are dropped, as on a wire."""

_PREFIX_BYTES = 4
_ADDRESSES_BYTES = 12  # receiver's and sender's MAC, which open a frame
_HEADER_BYTES = 14
_RECEIVE_BYTES = 1 << 18
_LEARNED_ADDRESSES = 4096  # a guest that invents addresses must not fill our memory


class Port:
    """One connected machine: the beginning of a frame still to be completed, and what waits to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.incoming = b""
        self.outgoing = bytearray()


class Switch:
    """Takes frames from ports and hands them to others, never waiting for any of them."""

    def __init__(self, selector: selectors.BaseSelector, listener: socket.socket) -> None:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        self._selector = selector
        self._listener = listener
        self._ports: set[Port] = set()
        self._learned: dict[bytes, Port] = {}

    @property
    def port_count(self) -> int:
        """How many ports are open."""
        return len(self._ports)

    def accept(self) -> None:
        """Make ports of all connections that wait."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            port = Port(connection)
            self._ports.add(port)
            self._selector.register(connection, selectors.EVENT_READ, port)

    def handle(self, port: Port, events: int) -> None:
        """Do what the selector says is possible on the port."""
        if events & selectors.EVENT_WRITE and port in self._ports:
            self._send_waiting(port)
        if events & selectors.EVENT_READ and port in self._ports:
            self._receive(port)

    def _receive(self, port: Port) -> None:
        try:
            received = port.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if received:
            self._forward(port, port.incoming + received)
        else:
            self._close(port)

    def _forward(self, port: Port, data: bytes) -> None:
        """Send all whole frames of ``data`` on, keep the rest.

        Frames with the same addresses in a row, as in any bulk transfer, travel on in one piece: what
        comes in and what goes out is framed in the same way.
        """
        position = run_start = 0
        run_addresses = b""
        receivers: Collection[Port] = ()
        while position + _PREFIX_BYTES <= len(data):
            frame = position + _PREFIX_BYTES
            length = int.from_bytes(data[position:frame], "big")
            if length > MAX_FRAME_BYTES:
                self._close(port)
                break
            if frame + length > len(data):
                break
            addresses = data[frame : frame + _ADDRESSES_BYTES] if length >= _HEADER_BYTES else b""
            if addresses != run_addresses:
                self._send(receivers, data[run_start:position])
                run_start, run_addresses = position, addresses
                receivers = self._receivers(port, addresses)
            position = frame + length
        self._send(receivers, data[run_start:position])
        port.incoming = data[position:]

    def _receivers(self, port: Port, addresses: bytes) -> Collection[Port]:
        """Learn who is behind ``port``, and tell who is to have a frame with these addresses."""
        if not addresses:
            return ()
        receiver, sender = addresses[:6], addresses[6:]
        if not sender[0] & 1:  # that bit marks a group of receivers, which sends nothing
            if sender not in self._learned and len(self._learned) >= _LEARNED_ADDRESSES:
                self._learned.clear()
            self._learned[sender] = port
        known = self._learned.get(receiver)
        if known is None:
            self.accept()  # a frame for everybody is also for those who joined just before it was sent
            return self._ports - {port}
        return () if known is port else (known,)

    def _send(self, receivers: Collection[Port], frames: bytes) -> None:
        if frames:
            for port in receivers:
                self._send_to(port, frames)

    def _send_to(self, port: Port, frames: bytes) -> None:
        if port.outgoing:
            port.outgoing += frames[: _fitting(frames, QUEUE_BYTES - len(port.outgoing))]
            return
        try:
            sent = port.socket.send(frames)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(port)
            return
        if sent < len(frames):
            port.outgoing += frames[sent:]  # never cut: a part of a frame may have gone out already
            self._selector.modify(port.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, port)

    def _send_waiting(self, port: Port) -> None:
        try:
            del port.outgoing[: port.socket.send(port.outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self._close(port)
            return
        if not port.outgoing:
            self._selector.modify(port.socket, selectors.EVENT_READ, port)

    def _close(self, port: Port) -> None:
        if port not in self._ports:
            return
        self._ports.discard(port)
        self._learned = {mac: behind for mac, behind in self._learned.items() if behind is not port}
        self._selector.unregister(port.socket)
        port.socket.close()


def _fitting(frames: bytes, room: int) -> int:
    """How many bytes of ``frames`` are whole frames that fit into ``room`` bytes."""
    if len(frames) <= room:
        return len(frames)
    end = 0
    while True:
        following = end + _PREFIX_BYTES + int.from_bytes(frames[end : end + _PREFIX_BYTES], "big")
        if following > room:
            return end
        end = following


def serve(listener: socket.socket, creator: int | None, grace_s: float) -> None:
    """Switch frames until nobody can need it any more. ``creator`` is a pidfd; None if it is gone."""
    with selectors.DefaultSelector() as selector:
        switch = Switch(selector, listener)
        if creator is not None:
            selector.register(creator, selectors.EVENT_READ)
        idle_since = time.monotonic()
        while True:
            needed = creator is not None or switch.port_count > 0
            end = math.inf if needed else idle_since + grace_s
            remaining_s = end - time.monotonic()
            if remaining_s <= 0:
                return
            for key, events in selector.select(None if needed else remaining_s):
                if isinstance(key.data, Port):
                    switch.handle(key.data, events)
                elif key.fileobj is listener:
                    switch.accept()
                else:
                    selector.unregister(key.fileobj)
                    creator = None
                idle_since = time.monotonic()


def watch_parent(pid: int) -> int | None:
    """A pidfd of our parent, or None if ``pid``, which started us, is our parent no more."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Only now is it certain that the pid was not given to another process in the meantime.
    return handle if os.getppid() == pid else None


def main() -> None:
    """Serve in a folder. The arguments: the folder, the creator's pid, the grace in seconds."""
    folder, creator, grace_s = sys.argv[1:]
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # a pipe of the creator's must not stay open through us
    os.umask(0o077)
    os.chdir(folder)  # the socket is bound by its bare name: such a path ends at 107 characters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(SOCKET_NAME)
        listener.listen(128)
        os.write(sys.stdout.fileno(), READY)
        with Path(os.devnull).open("r+b") as null:  # whoever waits for us sees us let go
            os.dup2(null.fileno(), sys.stdin.fileno())
            os.dup2(null.fileno(), sys.stdout.fileno())
        serve(listener, watch_parent(int(creator)), float(grace_s))
        Path(SOCKET_NAME).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
