"""Watching the consoles of a test's nodes."""

import threading
import time

import pytest

from pytest_vmfest import Server
from pytest_vmfest.alarms import alarm_patterns
from pytest_vmfest.errors import ConsoleAlarmError
from pytest_vmfest.watchdog import Watchdog

OOM = "Out of memory: Killed process 7 (db)"


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor."""
    with Server("fake", home=tmp_path) as server:
        yield server


@pytest.fixture
def group(server):
    """Two nodes."""
    with server.launch_group(2, image="tiny") as group:
        yield group


@pytest.fixture
def watchdog(group):
    """It watches both."""
    watchdog = Watchdog(alarm_patterns([]), breaks_off=True)
    for node in group.values():
        watchdog.add(node)
    return watchdog


def say(node, text):
    """Let the guest say something on its console by itself."""
    node.instance.driver._world.machines[node.instance.name].console += text


def test_an_alarm_breaks_off_a_command_on_another_node(group, watchdog):
    """A command that waits for a guest in trouble ends at once, whichever of the nodes it runs on."""
    threading.Timer(0.3, say, [group["node-1"], f"{OOM}\n"]).start()
    began = time.monotonic()
    with pytest.raises(ConsoleAlarmError, match="the console of node-1 says: Out of memory") as caught:
        group["node-0"].run("sleep 60")
    assert time.monotonic() - began < 20
    assert caught.value.line == OOM


def test_a_connection_that_the_trouble_breaks(server, group, watchdog):
    """When the guest breaks the connection first, the alarm is what the command fails with all the same."""

    def crash(call):
        say(group["node-0"], f"{OOM}\n")
        group["node-0"].disconnect()

    server.driver.respond("crash", crash)
    with pytest.raises(ConsoleAlarmError, match="Killed process"):
        group["node-0"].run("crash; true")


def test_after_an_alarm_no_command_is_begun_until_the_test_has_ended(group, watchdog):
    """A loop of short commands ends, too; afterwards the nodes can be used again."""
    say(group["node-0"], f"{OOM}\n")
    with pytest.raises(ConsoleAlarmError):
        group["node-1"].wait_until("false", timeout_s=60)
    assert [(alarm.node, alarm.line) for alarm in watchdog.end()] == [("node-0", OOM)]
    assert group["node-1"].check_output("echo fine") == "fine"
    assert len(watchdog.alarms) == 1


def test_what_was_said_before_the_test_does_not_count(group, watchdog):
    """A test answers for what the console says from its begin on."""
    node = group["node-0"]
    say(node, f"{OOM}\n")
    watchdog.begin([(node, len(node.console()))])
    assert watchdog.alarms == []
    say(group["node-1"], f"{OOM}\n")
    assert watchdog.alarms == []
    say(node, "Oops: 0002 [#1]\n")
    assert [alarm.line for alarm in watchdog.end()] == ["Oops: 0002 [#1]"]


def test_a_line_that_is_not_whole_yet(group, watchdog):
    """It is waited for while the test runs, and told as it is at the end."""
    say(group["node-0"], "Out of memory: Killed process 1")
    watchdog.look(False)
    say(group["node-0"], "7 (db)\nBUG: and then")
    assert [alarm.line for alarm in watchdog.end()] == [
        "Out of memory: Killed process 17 (db)",
        "BUG: and then",
    ]


def test_what_a_test_expects(group, watchdog):
    """Lines that a node expects are no alarm, until the next test."""
    node = group["node-0"]
    node.expect_console("Killed process .*db")
    say(node, f"{OOM}\n")
    assert watchdog.alarms == []
    watchdog.begin([(node, 0)])
    assert len(watchdog.alarms) == 1


def test_without_breaking_off(group):
    """It can be told to listen only."""
    watchdog = Watchdog(alarm_patterns([]), breaks_off=False)
    watchdog.add(group["node-0"])
    say(group["node-0"], f"{OOM}\n")
    group["node-0"].run("true")
    assert len(watchdog.end()) == 1


def test_a_machine_that_is_gone_is_no_alarm(group, watchdog):
    """There is no console to look at, and the others are looked at all the same."""
    group["node-0"].destroy()
    say(group["node-1"], f"{OOM}\n")
    assert [alarm.node for alarm in watchdog.alarms] == ["node-1"]
