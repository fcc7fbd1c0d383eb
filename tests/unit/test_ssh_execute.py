"""Running commands over SSH, mostly on a real OpenSSH server."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest
from ssh_server import OpenSsh, ParamikoServer, make_key, needs_sshd

from pytest_vmfest.errors import CommandTimeoutError, ConnectionLostError, RemoteError
from pytest_vmfest.remote import ENCODING_ERRORS, Completed
from pytest_vmfest.specs import Identity, Login
from pytest_vmfest.ssh import connect
from pytest_vmfest.ssh import wire as wire_module
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    import paramiko

    from pytest_vmfest.ssh.connection import SshRemote

MIB = 1 << 20


def _run(remote: SshRemote, script: str, input: bytes | None = None, timeout_s: float = 20) -> Completed:
    return remote.execute(script, input=input, deadline=Deadline(timeout_s))


@needs_sshd
def test_streams_and_status(remote: SshRemote) -> None:
    """Both streams come apart, byte for byte, with the exit status."""
    done = _run(remote, r"printf 'a\000\377b'; echo oops >&2; exit 3")

    assert done == Completed(3, b"a\x00\xffb", b"oops\n")


@needs_sshd
def test_input(remote: SshRemote) -> None:
    """Input reaches the command unchanged, and ends; without any, the command reads an end at once."""
    data = bytes(range(256)) * 3

    assert _run(remote, "cat", data) == Completed(0, data, b"")
    assert _run(remote, "cat", b"") == Completed(0, b"", b"")
    assert _run(remote, "cat", None) == Completed(0, b"", b"")


@needs_sshd
def test_much_on_all_streams_at_once(remote: SshRemote) -> None:
    """10 MiB in, and 10 MiB out on each stream at the same time, arrive whole and do not block each other."""
    data = os.urandom(10 * MIB)

    done = _run(remote, "tee /dev/stderr", data, timeout_s=60)

    wanted = hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stdout).digest() == wanted
    assert hashlib.sha256(done.stderr).digest() == wanted
    assert done.exit_status == 0


@needs_sshd
def test_streams_one_after_the_other(remote: SshRemote) -> None:
    """A stream that is full long before the other begins holds nothing up."""
    script = "head -c 10485760 /dev/zero >&2; head -c 10485760 /dev/zero"

    done = _run(remote, script, timeout_s=60)

    assert (len(done.stdout), len(done.stderr)) == (10 * MIB, 10 * MIB)


@needs_sshd
def test_input_that_nobody_reads(remote: SshRemote) -> None:
    """A command that ends without reading its input ends."""
    assert _run(remote, "exit 7", bytes(10 * MIB)).exit_status == 7
    assert _run(remote, "echo still there").stdout == b"still there\n"


@needs_sshd
@pytest.mark.parametrize(("name", "status"), [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("STKFLT", 128)])
def test_death_by_signal(remote: SshRemote, name: str, status: int) -> None:
    """The exit status is 128 + N for signal N, and 128 for one that SSH has no name for."""
    assert _run(remote, f"kill -{name} $$").exit_status == status


@needs_sshd
def test_a_timeout_keeps_what_was_written(remote: SshRemote) -> None:
    """The error has the output so far, and the connection stays usable."""
    started = time.monotonic()
    script = "echo out; echo partly >&2; sleep 2; echo never"
    with pytest.raises(CommandTimeoutError, match=r"not finished within 0\.3 s") as caught:
        _run(remote, script, timeout_s=0.3)

    assert time.monotonic() - started < 2
    assert caught.value.command == script
    assert caught.value.timeout_s == 0.3
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "partly\n")
    assert _run(remote, "echo fine").stdout == b"fine\n"


@needs_sshd
@pytest.mark.skipif(os.geteuid() == 0, reason="OpenSSH sends no signals to commands of root")
def test_a_timeout_kills_the_command(remote: SshRemote) -> None:
    """A command that is out of time does not go on in the guest, nor do its children."""
    with pytest.raises(CommandTimeoutError) as caught:
        _run(remote, "sleep 60 & echo $! $$; wait", timeout_s=0.3)

    pids = [int(pid) for pid in caught.value.stdout.split()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(psutil.pid_exists, pids)), Deadline(5), what="the command's end")


@needs_sshd
def test_a_stream_without_end_times_out(remote: SshRemote) -> None:
    """The deadline also counts while output keeps coming."""
    with pytest.raises(CommandTimeoutError) as caught:
        _run(remote, "yes", timeout_s=0.2)

    assert caught.value.stdout.startswith("y\ny\n")


@needs_sshd
def test_a_process_left_behind_is_named_as_the_reason(remote: SshRemote) -> None:
    """A command that is over, but whose child holds its output, is told apart from one that goes on."""
    with pytest.raises(
        CommandTimeoutError, match="ended with status 5, but a process that it left"
    ) as caught:
        _run(remote, "sleep 1 & echo started; exit 5", timeout_s=0.5)

    assert caught.value.stdout == "started\n"


@needs_sshd
def test_a_frozen_guest_times_out_and_recovers(openssh: OpenSsh, remote: SshRemote) -> None:
    """Commands to a guest that hangs end with their deadlines; once it goes on, so does the connection.

    More of them than a server's limit of sessions: none may be left over.
    """
    with openssh.frozen():
        for _ in range(12):
            with pytest.raises(CommandTimeoutError, match="did not even begin"):
                _run(remote, "echo late", timeout_s=0.05)
        assert remote.alive

    assert _run(remote, "echo again").stdout == b"again\n"


@needs_sshd
def test_a_frozen_guest_that_takes_no_input(
    tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline holds when more was written than all buffers hold; then the connection is given up."""
    monkeypatch.setattr(wire_module, "_STUCK_S", 0.1)
    frozen, ended = threading.Event(), threading.Event()

    def small(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    with OpenSsh(tmp_path / "sshd", identity, before=small) as server:
        remote = server.connect()
        remote._wire._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        def freeze() -> None:
            wait_for(lambda: "cat" in _children(), Deadline(20), what="the command")
            with server.frozen():
                frozen.set()
                ended.wait(20)

        freezing = threading.Thread(target=freeze)
        freezing.start()
        started = time.monotonic()
        with pytest.raises(CommandTimeoutError):
            _run(remote, "cat > /dev/null", bytes(1024 * MIB), timeout_s=1)
        waited = time.monotonic() - started
        ended.set()
        freezing.join(20)

        assert frozen.is_set()
        assert waited < 5
        wait_for(lambda: not remote.alive, Deadline(5), what="the connection's end")


@needs_sshd
def test_many_commands(remote: SshRemote) -> None:
    """Commands one after the other, and from more threads than a connection has sessions."""
    for number in range(30):
        assert _run(remote, f"echo {number}").stdout == f"{number}\n".encode()
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda number: _run(remote, f"sleep 0.05; echo {number}").stdout, range(40)))

    assert done == [f"{number}\n".encode() for number in range(40)]


@needs_sshd
def test_names_that_are_no_text(remote: SshRemote) -> None:
    """Bytes that are no UTF-8 pass through a command line as they do through file names."""
    script = "printf %s " + b"x\xffy\xc3\xa4".decode(errors=ENCODING_ERRORS)

    assert _run(remote, script).stdout == b"x\xffy\xc3\xa4"


@needs_sshd
@pytest.mark.parametrize(("script", "why"), [("echo \0", "NUL"), ("echo " + "x" * 300_000, "too long")])
def test_commands_that_a_server_would_hang_up_on(remote: SshRemote, script: str, why: str) -> None:
    """A command that cannot be sent is refused, and the connection lives on."""
    with pytest.raises(RemoteError, match=why):
        _run(remote, script)

    assert _run(remote, "echo fine").stdout == b"fine\n"


@needs_sshd
def test_a_connection_that_breaks(openssh: OpenSsh, remote: SshRemote) -> None:
    """A command ends at once when the guest dies, with what it had written; later ones are told, too."""
    begun = threading.Event()
    failure: list[Exception] = []

    def run() -> None:
        try:
            _run(remote, "echo partly; echo begun >&2; sleep 60", timeout_s=60)
        except ConnectionLostError as error:
            failure.append(error)

    running = threading.Thread(target=run)
    running.start()
    wait_for(lambda: "sleep" in _children(), Deadline(10), what="the command")
    begun.set()
    openssh.hang_up()
    running.join(5)

    assert not running.is_alive()
    assert "root" in str(failure[0]) or openssh.login.username in str(failure[0])
    assert "echo partly" in str(failure[0])
    assert "stdout: …partly" in str(failure[0])
    wait_for(lambda: not remote.alive, Deadline(5), what="the connection's end")
    with pytest.raises(ConnectionLostError, match=str(openssh.endpoint)):
        _run(remote, "true")


def _children() -> set[str]:
    return {process.name() for process in psutil.Process().children(recursive=True)}


@needs_sshd
def test_close(openssh: OpenSsh) -> None:
    """Closing ends the connection's threads and the commands of others, and may be repeated."""
    threads = set(threading.enumerate()) | {None}
    remote = openssh.connect()
    failure: list[Exception] = []

    def run() -> None:
        try:
            _run(remote, "sleep 60", timeout_s=60)
        except ConnectionLostError as error:
            failure.append(error)

    running = threading.Thread(target=run)
    running.start()
    wait_for(lambda: "sleep" in _children(), Deadline(10), what="the command")
    assert remote.alive
    remote.close()
    remote.close()

    assert not remote.alive
    running.join(5)
    assert len(failure) == 1
    with pytest.raises(ConnectionLostError):
        _run(remote, "true")
    wait_for(
        lambda: (
            not [
                t
                for t in set(threading.enumerate()) - threads
                if t.name.startswith(("vmfest", "Thread")) and t not in openssh._threads
            ]
        ),
        Deadline(5),
        what="the end of all threads",
    )


class _Answering:
    """A server of paramiko's that answers commands in a way of its own, and a connection to it."""

    def __init__(self, key: paramiko.PKey, on_command: object) -> None:
        self.server = ParamikoServer(key, password="x", on_command=on_command)
        self.remote = connect(self.server.endpoint, Login(password="x"), Deadline(20))

    def __enter__(self) -> SshRemote:
        return self.remote

    def __exit__(self, *error: object) -> None:
        self.remote.close()
        self.server.close()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> paramiko.PKey:
    """A host key."""
    return make_key(tmp_path_factory.mktemp("host") / "key")


def test_a_guest_that_runs_no_commands(key: paramiko.PKey) -> None:
    """A refused command is an error of its own; the connection stays."""
    with _Answering(key, lambda channel: False) as remote:
        with pytest.raises(RemoteError, match="'uname'") as caught:
            _run(remote, "uname")
        assert not isinstance(caught.value, ConnectionLostError)
        assert remote.alive


def test_a_guest_that_does_not_answer(key: paramiko.PKey) -> None:
    """The deadline holds while a command is only asked for; a late answer is cleaned up."""
    answer, closed = threading.Event(), threading.Event()

    def hold(channel: paramiko.Channel) -> bool:
        def wait() -> None:
            while channel.recv(100):
                pass
            closed.set()

        answer.wait(20)
        threading.Thread(target=wait).start()
        return True

    with _Answering(key, hold) as remote:
        started = time.monotonic()
        with pytest.raises(CommandTimeoutError, match="did not even begin"):
            _run(remote, "uname", timeout_s=0.2)
        assert time.monotonic() - started < 3
        answer.set()
        assert closed.wait(5)


def test_a_command_without_an_end(key: paramiko.PKey) -> None:
    """A guest that closes a command's channel without its exit status has lost the command."""

    def vanish(channel: paramiko.Channel) -> bool:
        threading.Timer(0.05, lambda: (channel.sendall(b"partly"), channel.close())).start()
        return True

    with _Answering(key, vanish) as remote, pytest.raises(ConnectionLostError, match=r"partly"):
        _run(remote, "uname")
