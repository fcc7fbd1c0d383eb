"""Looking at the nodes of a failing test, whatever has become of them."""

import threading

import pytest

from pytest_vmfest import Server, look
from pytest_vmfest.look import console_lengths, look_at


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


def test_a_running_node(node):
    """State, way in, commands and console are there."""
    node.run("echo hi")
    (seen,) = look_at([(node, 0)])
    assert (seen.node, seen.machine, seen.image, seen.driver) == ("box", node.instance.name, "tiny", "fake")
    assert (seen.state, seen.ssh_command, seen.trouble) == ("running", node.ssh_command, [])
    assert [one.command for one in seen.commands] == ["echo hi"]
    assert seen.console == node.console()


def test_a_node_that_its_hypervisor_has_let_down(server, node, monkeypatch):
    """Its process is gone, or has halted it by itself; one that is off or paused by the user is not."""
    node.pause()
    assert look_at([(node, 0)])[0].let_down == ""
    monkeypatch.setattr(server.driver, "standstill", lambda name: "there is no space left")
    assert look_at([(node, 0)])[0].let_down == "there is no space left"
    server.driver.abort(node.instance.name)
    assert "was killed" in look_at([(node, 0)])[0].let_down
    node.instance.power_down()
    assert look_at([(node, 0)])[0].let_down == ""


def test_what_the_console_says_since_then(node):
    """What was there before the test began is told apart."""
    before = console_lengths([node])
    node.run("echo news > /dev/ttyS0")
    (seen,) = look_at([(node, before["box"])])
    assert seen.console_of_test == "news\n"
    assert "ready" in seen.console


def test_a_node_that_is_off(node):
    """There is no way in, and that is no trouble."""
    node.instance.power_down()
    (seen,) = look_at([(node, 0)])
    assert (seen.state, seen.ssh_command, seen.trouble) == ("powered off", "", [])


def test_a_machine_that_is_gone(node):
    """What cannot be had is told in a line each; what is remembered is still there."""
    node.run("true")
    node.destroy()
    (seen,) = look_at([(node, 0)])
    assert [one.command for one in seen.commands] == ["true"]
    assert len(seen.trouble) == 2
    assert seen.trouble[0].startswith("its console cannot be told: there is no machine")
    assert console_lengths([node]) == {"box": 0}


def test_a_driver_that_does_not_answer(server, node, monkeypatch):
    """The look ends after its time, with what could be had."""
    never = threading.Event()
    monkeypatch.setattr(look, "LOOK_S", 0.2)
    monkeypatch.setattr(server.driver, "state", lambda name: never.wait())
    (seen,) = look_at([(node, 0)])
    never.set()
    assert seen.state == "unknown"
    assert seen.trouble == ["its state cannot be told: no answer within 0.2 s"]
    assert "ready" in seen.console
