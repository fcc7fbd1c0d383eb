"""The userspace Ethernet switch: real processes, plain sockets in place of QEMU."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import pytest_vmfest
from pytest_vmfest.drivers.qemu import switch, switch_process
from pytest_vmfest.drivers.qemu.switch import connect_switch, end_switch, spawn_switch
from pytest_vmfest.errors import DriverError
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

BROADCAST = b"\xff" * 6
MULTICAST = bytes.fromhex("01005e0000fb")


def mac(number: int) -> bytes:
    return b"\x52\x54\x00" + number.to_bytes(3, "big")


A, B, C = mac(1), mac(2), mac(3)


def frame(receiver: bytes, sender: bytes, payload: bytes = b"") -> bytes:
    return receiver + sender + b"\x88\xb5" + payload


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class Machine:
    """A plain socket on the network where a machine's QEMU would be."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        self.socket = connection

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(framed(one) for one in frames))

    def receive(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(4), "big"))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                received = self.socket.recv(count - len(data))
            except ConnectionResetError:  # the other end went with something of ours unread
                received = b""
            if not received:
                raise EOFError
            data += received
        return data


class Network:
    """A folder with a switch, and the machines that joined it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cleanup = ExitStack()
        self.cleanup.callback(end_switch, folder)

    def join(self) -> Machine:
        return Machine(self.cleanup.enter_context(connect_switch(self.folder)))

    def pid(self) -> int:
        with connect_switch(self.folder) as connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    def pidfd(self) -> int:
        pidfd = os.pidfd_open(self.pid())
        self.cleanup.callback(os.close, pidfd)
        return pidfd


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network that is not started yet, and that is gone after the test."""
    network = Network(tmp_path / "net")
    with network.cleanup:
        yield network


@pytest.fixture
def machines(network: Network) -> tuple[Machine, Machine, Machine]:
    """Three machines on one network, which the switch knows by their addresses A, B and C."""
    spawn_switch(network.folder)
    joined = (network.join(), network.join(), network.join())
    for machine, address in zip(joined, (A, B, C), strict=True):
        hello = frame(BROADCAST, address, b"hello")
        machine.send(hello)
        assert [other.receive() for other in joined if other is not machine] == [hello, hello]
    return joined


def ended(pidfd: int, within_s: float = 10) -> bool:
    return bool(select.select([pidfd], [], [], within_s)[0])


# --- switching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "receiver", [BROADCAST, MULTICAST, mac(99)], ids=["broadcast", "multicast", "unknown"]
)
def test_frame_for_everybody_reaches_the_others_only(
    machines: tuple[Machine, Machine, Machine], receiver: bytes
) -> None:
    """Broadcasts, multicasts and frames for unknown addresses go to all but their sender."""
    a, b, c = machines
    question = frame(receiver, A, b"who?")
    a.send(question)
    assert b.receive() == question
    assert c.receive() == question

    answer = frame(A, B, b"me")
    b.send(answer)
    assert a.receive() == answer, "the sender must not have seen its own frame before"


def test_frame_for_a_known_address_reaches_one_only(machines: tuple[Machine, Machine, Machine]) -> None:
    """A frame for an address that was seen as a sender goes to that port alone."""
    a, b, c = machines
    secret, public = frame(B, A, b"secret"), frame(BROADCAST, A, b"public")
    a.send(secret, public)

    assert b.receive() == secret
    assert b.receive() == public
    assert c.receive() == public


def test_frame_for_the_sender_s_own_port_goes_nowhere(machines: tuple[Machine, Machine, Machine]) -> None:
    """What a machine sends to an address behind its own port is not sent back."""
    a, b, c = machines
    a.send(frame(A, A, b"me"))
    marker = frame(BROADCAST, B, b"marker")
    a.send(frame(B, A, b"go"))
    b.receive()
    b.send(marker)

    assert a.receive() == marker
    assert c.receive() == marker


def test_address_is_forgotten_with_its_port(machines: tuple[Machine, Machine, Machine]) -> None:
    """Once a machine has left, frames for it go to everybody, as for any unknown address."""
    a, b, c = machines
    question = frame(B, A, b"where?")
    b.socket.close()
    deadline = Deadline(10)
    while not select.select([c.socket], [], [], 0.05)[0]:  # the switch notices in its own time
        assert not deadline.expired
        a.send(question)
    assert c.receive() == question


def test_address_moves_with_its_machine(network: Network, machines: tuple[Machine, Machine, Machine]) -> None:
    """A machine that comes back on another port is found there, even before the old one is closed."""
    a, b, c = machines
    back = network.join()
    hello, welcome, marker = frame(BROADCAST, B, b"back"), frame(B, A, b"welcome"), frame(BROADCAST, A)
    back.send(hello)
    assert [a.receive(), b.receive(), c.receive()] == [hello, hello, hello]

    a.send(welcome, marker)
    assert [back.receive(), back.receive()] == [welcome, marker]
    assert b.receive() == marker


def test_machine_is_on_the_network_once_it_is_connected(network: Network) -> None:
    """Whoever joined before a broadcast was sent receives it, even if the switch was busy meanwhile."""
    spawn_switch(network.folder)
    a = network.join()
    for number in range(50):
        newcomer = network.join()
        a.send(frame(BROADCAST, A, bytes([number])))
        assert newcomer.receive() == frame(BROADCAST, A, bytes([number]))


def test_two_switches_never_meet(network: Network, tmp_path: Path) -> None:
    """A broadcast on one network is not seen on another."""
    other = Network(tmp_path / "other")
    with other.cleanup:
        spawn_switch(network.folder)
        spawn_switch(other.folder)
        a, b = network.join(), network.join()
        c, d = other.join(), other.join()

        a.send(frame(BROADCAST, A, b"here"))
        assert b.receive() == frame(BROADCAST, A, b"here")
        c.send(frame(BROADCAST, C, b"there"))
        assert d.receive() == frame(BROADCAST, C, b"there")

        assert not select.select([a.socket, b.socket, c.socket, d.socket], [], [], 0)[0]


def test_frames_come_in_pieces_and_in_heaps(machines: tuple[Machine, Machine, Machine]) -> None:
    """Where a write ends means nothing: bytes one by one or many frames in one write, all arrive in order."""
    a, b, c = machines
    data = b"".join(framed(frame(B, A, bytes([n]) * n)) for n in range(20))
    for byte in data[:200]:
        a.socket.sendall(bytes([byte]))
    a.socket.sendall(data[200:])
    assert [b.receive() for _ in range(20)] == [frame(B, A, bytes([n]) * n) for n in range(20)]

    mixed = [frame(receiver, A, bytes([n])) for n in range(50) for receiver in (B, C, BROADCAST)]
    a.send(*mixed)
    assert [b.receive() for _ in range(100)] == [one for one in mixed if one[:6] != C]
    assert [c.receive() for _ in range(100)] == [one for one in mixed if one[:6] != B]


def test_largest_frame_passes(machines: tuple[Machine, Machine, Machine]) -> None:
    """A frame of 64 KiB arrives whole."""
    a, b, _ = machines
    large = frame(B, A, os.urandom(switch_process.MAX_FRAME_BYTES - 14))
    a.send(large)
    assert b.receive() == large


def test_broken_framing_closes_that_port_only(machines: tuple[Machine, Machine, Machine]) -> None:
    """A length beyond 64 KiB ends the port it came from; what came before it and all others go on."""
    a, b, c = machines
    good = frame(BROADCAST, A, b"last words")
    a.socket.sendall(framed(good) + struct.pack(">I", switch_process.MAX_FRAME_BYTES + 1) + b"x")

    assert b.receive() == good
    assert c.receive() == good
    with pytest.raises(EOFError):
        a.receive()
    b.send(frame(C, B, b"still here"))
    assert c.receive() == frame(C, B, b"still here")


def test_frames_without_a_header_are_dropped(machines: tuple[Machine, Machine, Machine]) -> None:
    """What is too short to be a frame goes nowhere and does no harm."""
    a, b, _ = machines
    a.send(b"", b"x", (BROADCAST + A + b"\x88")[:13], frame(B, A, b"good"))
    assert b.receive() == frame(B, A, b"good")


def test_stalled_receiver_does_not_block_others(
    network: Network, machines: tuple[Machine, Machine, Machine]
) -> None:
    """A machine that reads nothing loses frames; the others lose none, and memory does not grow."""
    a, b, stalled = machines
    process = psutil.Process(network.pid())
    before = process.memory_info().rss
    sent = [frame(BROADCAST, A, n.to_bytes(4, "big") + bytes(1400)) for n in range(20_000)]
    window = threading.Semaphore(100)  # b is not to be overrun: that would be dropping in its own right

    def flood() -> None:
        for one in sent:
            window.acquire()
            a.send(one)

    sender = threading.Thread(target=flood)
    sender.start()
    for one in sent:
        assert b.receive() == one
        window.release()
    sender.join()

    # 28 MB were sent; a queue and some buffers are all that may have been kept of them.
    assert process.memory_info().rss - before < 8 * switch_process.QUEUE_BYTES
    # Now it reads again: first what was kept, then anew, as soon as there is room.
    end = frame(C, B, b"end")
    kept = []
    while (one := stalled.receive()) != end:
        kept.append(one)
        if len(kept) % 100 == 0:
            b.send(end)
    assert 0 < len(kept) < len(sent)
    assert kept == sent[: len(kept)]


def test_invented_addresses_do_not_fill_the_memory() -> None:
    """The table of learned addresses is bounded."""
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        table = switch_process.Switch(selector, listener)
        port = switch_process.Port(listener)  # any socket: nothing is sent
        for number in range(10_000):
            table._receivers(port, BROADCAST + mac(number))
        assert 0 < len(table._learned) < 5_000


# --- life and end ------------------------------------------------------------------------------------


def test_folder_is_private(network: Network) -> None:
    """Nobody else may join: the folder is the user's own, whatever it was before."""
    network.folder.mkdir(mode=0o755)
    spawn_switch(network.folder)
    assert network.folder.stat().st_mode & 0o777 == 0o700


def test_folder_s_path_may_be_long(tmp_path: Path) -> None:
    """The folder may lie deeper than the 107 characters that the path of a Unix socket can have."""
    network = Network(tmp_path / ("n" * 120) / ("m" * 120))
    with network.cleanup:
        spawn_switch(network.folder)
        a, b = network.join(), network.join()
        a.send(frame(BROADCAST, A))
        assert b.receive() == frame(BROADCAST, A)


def test_folder_s_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be named from the current one."""
    monkeypatch.chdir(tmp_path)
    network = Network(Path("net"))
    with network.cleanup:
        spawn_switch(network.folder)
        network.join()


def test_running_switch_stays(network: Network) -> None:
    """Spawning where a switch runs changes nothing: its machines stay connected."""
    spawn_switch(network.folder)
    pid = network.pid()
    a, b = network.join(), network.join()
    spawn_switch(network.folder)

    assert network.pid() == pid
    a.send(frame(BROADCAST, A))
    assert b.receive() == frame(BROADCAST, A)


def test_many_at_once_spawn_one(network: Network) -> None:
    """Threads that spawn in one folder at once end up with one switch."""
    before = {child.pid for child in psutil.Process().children()}
    threads = [threading.Thread(target=spawn_switch, args=(network.folder,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {child.pid for child in psutil.Process().children()} - before == {network.pid()}


def test_killed_switch_is_replaced(network: Network) -> None:
    """The socket of a switch that was killed stands in nobody's way."""
    spawn_switch(network.folder)
    pid = network.pid()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(DriverError, match="no switch answers"):
        connect_switch(network.folder)

    spawn_switch(network.folder)
    assert network.pid() != pid


def test_ending_closes_ports_and_leaves_no_process(network: Network) -> None:
    """After the end the process is gone, its ports are closed and nobody can join."""
    spawn_switch(network.folder)
    a, pid = network.join(), network.pid()
    end_switch(network.folder)

    assert not psutil.pid_exists(pid)
    with pytest.raises(EOFError):
        a.receive()
    with pytest.raises(DriverError, match="no switch answers"):
        connect_switch(network.folder)
    assert [path.name for path in network.folder.iterdir()] == ["switch.log"]


def test_ending_twice_or_nothing_is_fine(network: Network) -> None:
    """There may be no switch any more, never have been one, or not even the folder."""
    end_switch(network.folder)
    network.folder.mkdir()
    end_switch(network.folder)
    spawn_switch(network.folder)
    end_switch(network.folder)
    end_switch(network.folder)
    assert not (network.folder / "switch.sock").exists()


def test_stopped_switch_is_ended_too(network: Network) -> None:
    """A switch that does not react any more is ended all the same."""
    spawn_switch(network.folder)
    pid = network.pid()
    os.kill(pid, signal.SIGSTOP)
    end_switch(network.folder)
    assert not psutil.pid_exists(pid)


def test_no_pipe_of_the_creator_stays_open(network: Network) -> None:
    """Whoever reads a pipe of the creator is not kept waiting by a switch that lives on."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    spawn_switch(network.folder)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 5)[0]
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "ended at once"),
        ("echo 'Bad: thing' >&2; exit 1", "Bad: thing"),
        ("exec sleep 60", "not ready"),
    ],
    ids=["ends", "complains", "hangs"],
)
def test_switch_that_does_not_start_is_an_error(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    """The error names the folder and the reason, and no process is left."""
    monkeypatch.setattr(switch, "_START_TIMEOUT_S", 5 if "sleep" not in script else 0.2)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    before = psutil.Process().children()

    with pytest.raises(DriverError, match=reason) as caught:
        spawn_switch(network.folder, python=str(python))

    assert str(network.folder) in str(caught.value)
    assert psutil.Process().children() == before


def test_missing_interpreter_is_an_error(network: Network) -> None:
    """A Python that is not there is told in our own words."""
    with pytest.raises(DriverError, match="no switch could be started"):
        spawn_switch(network.folder, python="/no/such/python")


# --- ending by itself --------------------------------------------------------------------------------


@pytest.fixture
def creator(network: Network) -> subprocess.Popen[bytes]:
    """Another process that has created the network with a grace of 0.2 s, and lives until it is killed."""
    program = (
        "import pathlib, sys; from pytest_vmfest.drivers.qemu import switch; switch.GRACE_S = 0.2;"
        "switch.spawn_switch(pathlib.Path(sys.argv[1])); print('ok', flush=True); sys.stdin.read()"
    )
    process = network.cleanup.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", program, network.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(pytest_vmfest.__file__).parents[1])},
        )
    )
    network.cleanup.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ok\n"
    return process


def test_switch_waits_for_machines_while_its_creator_lives(
    network: Network, creator: subprocess.Popen[bytes]
) -> None:
    """Machines may come late, and go and come again, as long as the creator lives."""
    pidfd = network.pidfd()
    network.join().socket.close()

    assert not ended(pidfd, within_s=0.5)


def test_switch_ends_after_its_creator_was_killed(network: Network, creator: subprocess.Popen[bytes]) -> None:
    """Without creator and machines, a switch ends by itself and takes its socket along."""
    pidfd = network.pidfd()
    creator.kill()

    assert ended(pidfd)
    assert not (network.folder / "switch.sock").exists()


def test_switch_stays_for_kept_machines(network: Network, creator: subprocess.Popen[bytes]) -> None:
    """Machines that outlive the creator keep their network; it ends with the last of them."""
    pidfd = network.pidfd()
    a, b = network.join(), network.join()
    creator.kill()
    creator.wait()

    assert not ended(pidfd, within_s=0.5)
    a.send(frame(BROADCAST, A))
    assert b.receive() == frame(BROADCAST, A)
    a.socket.close()
    assert not ended(pidfd, within_s=0.5)
    b.socket.close()
    assert ended(pidfd)


def test_creator_that_is_gone_before_the_switch_looks() -> None:
    """A creator that is not the parent (any more) counts as gone, whoever has its pid now."""
    assert switch_process.watch_parent(os.getpid()) is None
