"""The blocking face of QEMU's monitor, against a small server that speaks QMP."""

import asyncio
import json
import socket
import threading
import time
from importlib import import_module

import pytest
from qemu.qmp import Message
from qemu.qmp.error import ProtocolError, QMPError
from qemu.qmp.events import ListenerError
from qemu.qmp.message import DeserializationError, UnexpectedTypeError
from qemu.qmp.models import ErrorResponse
from qemu.qmp.protocol import ConnectError, Runstate, StateError
from qemu.qmp.qmp_client import (
    BadReplyError,
    ExecInterruptedError,
    ExecuteError,
    GreetingError,
    NegotiationError,
    ServerParseError,
)

from pytest_vmfest.drivers.qemu.monitor import (
    Monitor,
    MonitorLoop,
    MonitorLostError,
    connect_beside,
    translated,
)
from pytest_vmfest.errors import DriverError, VmfestError, WaitTimeoutError
from pytest_vmfest.waiting import Deadline, wait_for

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}


class FakeQemu:
    """Answers QMP commands on one end of a socket pair, in a thread."""

    def __init__(self, answers):
        self.answers = {"qmp_capabilities": {}} | answers
        self.client, self._server = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with self._server:
            self._say(GREETING)
            for command in self._commands():
                answer = self.answers[command["execute"]]
                if answer == "hang up":
                    return
                if answer == "nothing":
                    continue
                for event, seconds, microseconds in answer.pop("events", ()):
                    moment = {"seconds": seconds, "microseconds": microseconds}
                    self._say({"event": event, "timestamp": moment})
                reply = {"error": answer} if "class" in answer else {"return": answer}
                self._say({**reply, "id": command.get("id")})

    def _commands(self):
        """Objects one after the other; QMP puts nothing between them."""
        text = ""
        while data := self._server.recv(4096):
            text += data.decode()
            while text:
                command, end = json.JSONDecoder().raw_decode(text)
                text = text[end:].lstrip()
                yield command

    def _say(self, message):
        self._server.sendall(json.dumps(message).encode() + b"\r\n")

    def end(self):
        self.client.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def loop():
    """A running event loop in its thread; afterwards the thread has ended."""
    before = set(threading.enumerate())
    loop = MonitorLoop()
    yield loop
    loop.close()
    assert set(threading.enumerate()) <= before


@pytest.fixture
def connect(loop):
    """Connect a monitor to a server with the given answers."""
    servers = []

    def connected(**answers):
        server = FakeQemu(answers)
        servers.append(server)
        return Monitor.connect(loop, server.client, "m", Deadline(10))

    yield connected
    loop.close()
    for server in servers:
        server.end()


def test_a_command_is_answered(connect):
    """The answer is returned as it is, also from several threads at once."""
    monitor = connect(query={"status": "running"})
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(monitor.execute("query")["status"])) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["running"] * 5
    monitor.close()
    monitor.close()


def test_when_the_machine_was_halted_and_went_on(connect):
    """QEMU's own word counts, not when its answer came; without a word it was about now."""
    monitor = connect(
        stop={"events": [("STOP", 1000, 250000)]},
        cont={"events": [("RESUME", 2000, 500000)]},
    )
    assert abs(monitor.halted - time.time()) < 60
    monitor.halt()
    assert monitor.halted == 1000.25
    assert monitor.go_on() == 2000.5
    assert abs(monitor.go_on() - time.time()) < 60, "it ran already"


def test_a_refusal_is_quoted(connect):
    """QEMU's words stand in the error, with machine and command."""
    monitor = connect(eject={"class": "GenericError", "desc": "Device 'x' not found"})
    with pytest.raises(DriverError, match="machine 'm': QEMU refused eject: Device 'x' not found"):
        monitor.execute("eject")


def test_a_connection_that_breaks(connect):
    """When QEMU ends under a command, and for every command after that, the connection is lost."""
    monitor = connect(quit="hang up")
    for _ in range(2):
        with pytest.raises(MonitorLostError, match="machine 'm': lost QEMU during quit"):
            monitor.execute("quit")


def test_an_answer_that_does_not_come(connect):
    """The wait ends in time, and the monitor can be used further."""
    monitor = connect(stop="nothing", cont={})
    with pytest.raises(WaitTimeoutError, match="machine 'm': QEMU did not answer stop"):
        monitor.execute("stop", timeout_s=0.05)
    assert monitor.execute("cont") == {}


def test_no_greeting(loop):
    """A peer that says nothing ends at the deadline; one that hangs up at once."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(WaitTimeoutError, match="handshake"):
        Monitor.connect(loop, ours, "m", Deadline(0.05))
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(MonitorLostError, match="machine 'm': lost QEMU during the handshake"):
        Monitor.connect(loop, ours, "m", Deadline(10))


def test_a_peer_that_is_no_qemu(loop):
    """Something else on the other end is no crash."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"SSH-2.0-OpenSSH\r\n")
        with pytest.raises(DriverError, match="machine 'm'"):
            Monitor.connect(loop, ours, "m", Deadline(10))


def test_closing_the_loop_under_a_command(loop):
    """A command that waits is ended, not left hanging."""
    server = FakeQemu({"wait": "nothing"})
    monitor = Monitor.connect(loop, server.client, "m", Deadline(10))
    caught = []

    def wait():
        try:
            monitor.execute("wait", timeout_s=30)
        except VmfestError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: monitor._client._pending, Deadline(10), what="the command", interval_s=0.001)
    loop.close()
    thread.join(10)
    assert isinstance(caught[0], MonitorLostError)
    server.end()


def test_the_loop_starts_again(loop):
    """A driver that was closed can be used again."""
    loop.close()
    assert loop.run(asyncio.sleep(0, "done"), 10) == "done"
    loop.close()
    loop.close()
    assert loop.run(asyncio.sleep(0, "again"), 10) == "again"


def test_connecting_by_a_long_path(tmp_path):
    """A socket is reached although its path is longer than a socket's path may be."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    with pytest.raises(MonitorLostError, match=r"ctl\.sock"):
        connect_beside(folder, "ctl.sock", 1)
    short = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short))
        server.listen()
        short.rename(folder / "ctl.sock")
        connect_beside(folder, "ctl.sock", 1).close()


MESSAGE = Message({"execute": "query"})
REFUSAL = ErrorResponse({"error": {"class": "GenericError", "desc": "detail"}})
FOREIGN = [
    BadReplyError("detail", MESSAGE, MESSAGE),
    ConnectError("detail", EOFError()),
    DeserializationError("detail", b"raw"),
    ExecInterruptedError("detail"),
    ExecuteError(REFUSAL, MESSAGE, MESSAGE),
    GreetingError("detail", EOFError()),
    ListenerError("detail"),
    NegotiationError("detail", EOFError()),
    ProtocolError("detail"),
    QMPError("detail"),
    ServerParseError("detail", MESSAGE),
    StateError("detail", Runstate.IDLE, Runstate.RUNNING),
    UnexpectedTypeError("detail", 1),
]


def test_no_foreign_error_is_forgotten():
    """The list of errors above is all that the library defines for clients."""
    found = set()
    for module in ("error", "events", "message", "models", "protocol", "qmp_client"):
        for name, thing in vars(import_module(f"qemu.qmp.{module}")).items():
            if isinstance(thing, type) and issubclass(thing, QMPError) and not name.startswith("_"):
                found.add(thing)
    assert {type(error) for error in FOREIGN} == found


@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
def test_every_foreign_error_is_translated(error):
    """Whatever qemu.qmp raises becomes an error of ours that names machine and command."""
    ours = translated(error, "m", "query")
    assert isinstance(ours, VmfestError)
    assert "machine 'm'" in str(ours)
    assert "query" in str(ours)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EOFError(), MonitorLostError),
        (ConnectionResetError("reset"), MonitorLostError),
        (ExecInterruptedError("gone"), MonitorLostError),
        (TimeoutError(), WaitTimeoutError),
    ],
)
def test_kinds_of_trouble(error, expected):
    """A broken connection and a wait that took too long are told apart."""
    assert type(translated(error, "m", "query")) is expected
