"""What a node remembers of its commands."""

import pytest

from pytest_vmfest import CommandError, CommandTimeoutError, Server
from pytest_vmfest.errors import ConnectionLostError
from pytest_vmfest.journal import MOST_COMMANDS


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor."""
    with Server("fake", home=tmp_path) as server:
        yield server


@pytest.fixture
def node(server):
    """A connected node."""
    with server.launch(image="tiny") as node:
        yield node


def test_a_fresh_node_remembers_nothing(node):
    """What the launcher ran to introduce the node is not the test's."""
    assert node.journal.commands == ()


def test_commands_are_remembered_with_their_end_and_output(node):
    """Text, exit status, duration and both streams are there, whatever call ran the command."""
    node.run("echo out; echo err >&2; exit 3")
    with pytest.raises(CommandError):
        node.check_output(["false"])
    failed, checked = node.journal.commands
    assert (failed.command, failed.ending) == ("echo out; echo err >&2; exit 3", "exit status 3")
    assert (failed.stdout.text, failed.stderr.text) == ("out\n", "err\n")
    assert failed.duration_s is not None
    assert (checked.command, checked.ending) == ("false", "exit status 1")


def test_standard_input_is_not_remembered(node):
    """What a command was given on its standard input may be a secret."""
    node.run("cat > /root/x", input="top secret")
    assert "secret" not in repr(node.journal.commands)


def test_commands_that_do_not_end_are_remembered(node):
    """Of a timeout and of a lost connection the reason is kept."""
    with pytest.raises(CommandTimeoutError):
        node.run("echo so far; sleep 60", timeout_s=0.1)
    node.instance.power_down()
    with pytest.raises(ConnectionLostError):
        node.run("true")
    late, lost = node.journal.commands
    assert late.ending == "not ended within 0.1 s"
    assert "broken off: MachineGoneError: machine" in lost.ending
    assert "powered off" in lost.ending


def test_a_command_that_runs_is_remembered(server, node):
    """While a command runs, it is there as such."""
    seen = []
    server.driver.respond("look", lambda call: seen.extend(node.journal.commands) or 0)
    node.run("look")
    assert [(one.command, one.ending) for one in seen] == [("look", "still running")]


def test_what_is_repeated_is_counted(server, node):
    """A wait for a condition is not a hundred commands."""
    answers = iter([1, 1, 1, 0])
    server.driver.respond("ready", lambda call: next(answers))
    node.wait_until("ready")
    assert [(one.ending, one.times) for one in node.journal.commands] == [
        ("exit status 1", 3),
        ("exit status 0", 1),
    ]


def test_the_memory_is_bounded(server, node):
    """Only the last commands are kept, of each only the end of its output, and what was cut is counted."""
    server.driver.respond("chatty", lambda call: "x" * 100_000 + "THE END")
    for number in range(MOST_COMMANDS):
        node.run(f"echo {number}")
    node.run("chatty")
    node.run("true " + "y" * 100_000)
    *others, chatty, long = node.journal.commands
    assert len(others) == MOST_COMMANDS - 2
    assert others[0].command == "echo 2"
    assert chatty.stdout.text.endswith("THE END")
    assert chatty.stdout.characters == 100_007
    assert len(chatty.stdout.text) + len(long.command) < 10_000
