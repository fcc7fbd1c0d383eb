"""Nodes and groups, on the fake driver."""

import shlex
import struct
import threading
import time

import pytest

from pytest_vmfest import CommandError, CommandTimeoutError, Server, WaitTimeoutError
from pytest_vmfest.drivers.fake import FakeFault
from pytest_vmfest.errors import (
    ConnectionLostError,
    ConsoleAlarmError,
    DriverUnavailableError,
    MachineGoneError,
    MachineStateError,
)
from pytest_vmfest.link import BREAKS_OFF
from pytest_vmfest.remote import Completed
from pytest_vmfest.warm import mending


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor."""
    with Server("fake", home=tmp_path) as server:
        yield server


@pytest.fixture
def node(server):
    """A connected node."""
    with server.launch("box", image="tiny") as node:
        yield node


def test_results_and_checked_output(node):
    """Run tells the status; check_output strips, and raises with both streams and the command."""
    result = node.run("echo out; echo err >&2; exit 3")
    assert (result.exit_status, result.stdout, result.stderr, result.ok) == (3, "out\n", "err\n", False)
    assert node.check_output("echo '  x  '") == "x"
    with pytest.raises(CommandError, match=r"box: 'echo out; exit 4' exited with 4") as caught:
        node.check_output("echo out; exit 4")
    assert caught.value.result.exit_status == 4
    assert "out" in str(caught.value)


def test_bytes_that_are_no_text_survive(server, node):
    """Output that is no UTF-8 comes back byte for byte."""
    server.driver.respond("blob", Completed(0, b"\xff\x00\xfe", b""))
    assert node.run("blob").stdout_bytes == b"\xff\x00\xfe"


def test_long_output_is_cut_in_errors_but_not_in_results(server, node):
    """The error shows the end of much output, and says that there is more."""
    server.driver.respond("chatty", lambda call: "x" * 100_000 + "THE END")
    assert len(node.run("chatty").stdout) == 100_007
    with pytest.raises(CommandError) as caught:
        node.check_output("chatty; false")
    assert "THE END" in str(caught.value)
    assert len(str(caught.value)) < 10_000
    assert "of 100007 characters" in str(caught.value)


def test_a_timeout_names_node_command_and_seconds(node):
    """The error of a command that takes too long says so."""
    with pytest.raises(CommandTimeoutError, match=r"box: 'sleep 60' did not end within 0\.1 s"):
        node.run("sleep 60", timeout_s=0.1)


def test_wait_until_tells_the_last_answer(server, node):
    """It returns once the command succeeds; else the error holds what was said last."""
    answers = iter([1, 1, 0])
    server.driver.respond("ready", lambda call: next(answers))
    assert node.wait_until("ready").ok
    with pytest.raises(WaitTimeoutError, match="exited with 1"):
        node.wait_until("false", timeout_s=0.1)


def test_waiting_for_a_command_on_a_node_that_cannot_be_reached(server, node):
    """When not even the connection comes about in time, that is what the error says."""
    node.disconnect()
    server.driver.inject(FakeFault.UNREACHABLE)
    with pytest.raises(WaitTimeoutError, match="'true' to succeed"):
        node.wait_until("true", timeout_s=0.1)
    server.driver.heal()


def test_a_broken_connection_is_made_anew(node):
    """After the machine was off and on again, the same node answers."""
    node.instance.power_down()
    with pytest.raises(ConnectionLostError, match="powered off") as caught:
        node.run("true")
    assert not caught.value.infrastructure
    node.instance.start()
    assert node.check_output("uname -s") == "Linux"


def test_a_machine_that_stands_still_ends_a_command(server, node, monkeypatch):
    """One that its hypervisor has halted never answers: the command ends at once, and tells the reason."""
    monkeypatch.setattr(server.driver, "standstill", lambda name: "its disk is full")
    node.pause()
    with pytest.raises(ConnectionLostError, match="stands still: its disk is full") as caught:
        node.run("true")
    assert caught.value.infrastructure
    node.resume()
    assert node.check_output("echo on") == "on"


def test_a_machine_whose_hypervisor_was_killed(server, node):
    """That is no fault of the guest, and the errors tell the two apart."""
    server.driver.abort(node.instance.name)
    with pytest.raises(MachineGoneError, match="is aborted") as caught:
        node.run("true")
    assert caught.value.infrastructure
    with pytest.raises(MachineStateError, match="is aborted and cannot be paused") as refused:
        node.pause()
    assert refused.value.infrastructure


@pytest.mark.parametrize("kind", BREAKS_OFF)
def test_what_breaks_a_command_off_is_told_alone(node, kind):
    """The error says all; how the connection was closed for it is no part of what is shown."""
    error = kind("gone", line="gone") if kind is ConsoleAlarmError else kind("gone")

    def look(at_once):
        if node.is_connected:
            return
        raise error

    node.watch_with(look)
    threading.Timer(0.2, node.disconnect).start()
    with pytest.raises(kind, match="gone") as caught:
        node.run("sleep 60")
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)
    assert [entry.name for entry in caught.traceback[1:]] == ["run", "_run"]
    node.watch_with(lambda at_once: None)


def test_a_service_that_is_gone_ends_a_command(server, node, monkeypatch):
    """A hypervisor that cannot be reached any more is told while the command runs."""

    def gone(name):
        raise DriverUnavailableError("the service is gone")

    server.driver.respond("begun", lambda call: monkeypatch.setattr(server.driver, "state", gone) or 0)
    with pytest.raises(DriverUnavailableError, match="the service is gone"):
        node.run("begun; sleep 60")
    monkeypatch.undo()


def test_snapshot_revert_and_reboot(node):
    """Files go back with a revert and stay over a reboot; the name is the node's."""
    node.write_text("/root/x", "1")
    node.snapshot("one")
    node.write_text("/root/x", "2")
    node.revert("one")
    assert node.read_text("/root/x") == "1"
    node.reboot()
    assert node.read_text("/root/x") == "1"
    assert node.check_output("hostname") == "box"


@pytest.mark.parametrize("early_s", [-3600, -0.2, 0, 0.2, 3600])
def test_a_clock_that_is_wrong_after_a_revert(server, node, monkeypatch, early_s):
    """It is set once more if it is wrong for certain: if it tells no time between question and answer."""
    corrections = []

    def woken(call):
        seconds, fraction = divmod(time.time() + early_s, 1)
        return Completed(0, struct.pack("<qq", int(seconds), int(fraction * 1e9)), b"")

    def corrected(call):
        _, seconds, microseconds = call.command.split()
        corrections.append(int(seconds) + int(microseconds) / 1e6)
        return ""

    server.driver.respond(r"/var/lib/vmfest/mend 1 500000 \w+", woken)
    server.driver.respond(r"/var/lib/vmfest/mend -?\d+ \d+ ?", corrected)
    monkeypatch.setattr(server.driver, "lateness_s", lambda name: 1.5)
    node.snapshot("here")
    corrections.clear()
    node.revert("here")
    assert corrections == ([pytest.approx(-early_s, abs=0.1)] if early_s else [])


class Clock:
    """A guest's clock, and the program that tells and sets it."""

    def __init__(self, late_s):
        self.late_s = late_s

    def __call__(self, call):
        seconds, microseconds = call.command.split()[1:3]
        self.late_s -= int(seconds) + int(microseconds) / 1e6
        seconds, fraction = divmod(time.time() - self.late_s, 1)
        return Completed(0, struct.pack("<qq", int(seconds), int(fraction * 1e9)), b"")


@pytest.fixture
def slow_snapshots(server, monkeypatch):
    """The guest's clock, which stands still for 2 s while a snapshot is taken."""
    clock = Clock(late_s=3600.0)
    server.driver.respond(r"/var/lib/vmfest/mend -?\d+ \d+ .*", clock)
    take = server.driver.take_snapshot

    def halting(*arguments):
        take(*arguments)
        clock.late_s += 2

    monkeypatch.setattr(server.driver, "take_snapshot", halting)
    return clock


def test_the_clock_after_a_snapshot(node, slow_snapshots):
    """It is not late by what the snapshot took, and as wrong as it was, which may be meant."""
    node.snapshot("here")
    assert slow_snapshots.late_s == pytest.approx(3600, abs=0.1)


def test_the_clock_of_a_guest_that_has_booted(server, node, slow_snapshots):
    """It is given the program first."""
    made_executable = []

    def missing_at_first(call):
        return slow_snapshots(call) if made_executable else 127

    server.driver.respond(r"/var/lib/vmfest/mend -?\d+ \d+ .*", missing_at_first)
    server.driver.respond("chmod 755 /var/lib/vmfest/mend", lambda call: made_executable.append(call) or "")
    node.snapshot("here")
    assert node.run("cat /var/lib/vmfest/mend").stdout_bytes == mending.program()
    assert slow_snapshots.late_s == pytest.approx(3600, abs=0.1)


@pytest.mark.parametrize("working_calls", [0, 2, 4])
def test_a_snapshot_of_a_guest_that_does_not_answer(server, node, slow_snapshots, working_calls):
    """It is taken nevertheless, whenever the guest falls silent."""
    calls = []

    def breaking(call):
        calls.append(call)
        if len(calls) > working_calls:
            raise ConnectionLostError("the line is broken")
        return slow_snapshots(call)

    server.driver.respond(r"/var/lib/vmfest/mend .*", breaking)
    node.snapshot("here")
    assert node.instance.snapshots() == ["here"]
    assert len(calls) == working_calls + 1


def test_a_snapshot_after_an_alarm(node, slow_snapshots):
    """What the console says breaks off commands and file transfers, and no snapshot."""

    def alarm(is_over):
        raise ConsoleAlarmError("the console tells of trouble", line="Kernel panic")

    node.watch_with(alarm)
    node.snapshot("here")
    assert node.instance.snapshots() == ["here"]


def test_snapshots_of_guests_that_cannot_be_talked_to(server, node, slow_snapshots):
    """One that is paused is not asked, and one without a connection gets none for it."""
    calls = []
    server.driver.respond(r"/var/lib/vmfest/mend .*", lambda call: calls.append(call) or 1)
    node.pause()
    node.snapshot("paused")
    node.resume()
    node.disconnect()
    node.snapshot("alone")
    assert not node.is_connected
    assert calls == []


def test_who_it_is(node):
    """Name, user, image and address are told; the ssh command has them all."""
    assert (node.name, node.user, node.image.name) == ("box", "root", "tiny")
    words = shlex.split(node.ssh_command)
    assert words[0] == "ssh"
    assert words[-1] == f"root@{node.host}"
    assert str(node.port) in words


def test_the_nodes_of_a_group(server):
    """Addresses are distinct, actions reach all, and errors of several are told together."""
    with server.launch_group({"db": 1, "web": 2}, image="tiny") as group:
        assert len({node.ip for node in group.values()}) == 3
        assert {name: r.stdout for name, r in group.run("hostname").items()} == {n: f"{n}\n" for n in group}
        with pytest.raises(BaseExceptionGroup, match="3 of 3 nodes failed"):
            group.run("false", check=True)
        hosts = group["web-0"].read_text("/etc/hosts")
        assert all(f"{node.ip} {node.name}" in hosts for node in group.values())
