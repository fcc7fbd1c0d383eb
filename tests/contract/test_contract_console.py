"""Looking into a machine and typing on its keyboard; ways into it."""

import socket
import struct

import psutil
import pytest

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import MachineStateError, StoreError


def test_the_console_is_kept_over_restarts(lab):
    """All that the guest wrote since the machine was created, in order; nothing before its first start."""
    lab.driver.create(lab.spec())
    assert lab.driver.console("m") == ""
    lab.start()
    lab.expect_line("m", "first boot", "first boot")
    lab.driver.power_down("m")
    lab.start()
    said = lab.driver.console("m")
    assert said.count("ready") == 2
    assert said.index("first boot") < said.rindex("ready")


def test_the_console_is_there_when_the_machine_is_dead(lab):
    """What a killed machine's guest said last can still be read."""
    lab.boot()
    lab.expect_line("m", "last words", "last words")
    lab.kill("m")
    lab.await_state("m", MachineState.ABORTED)
    assert "last words" in lab.driver.console("m")


def test_every_character_of_the_layout_arrives(lab):
    """Letters, digits and signs, with and without shift, in order."""
    text = "The quick (brown) fox: jumps/over_[the] {lazy} dog? <0123456789> 'a' \"b\" `c` @#$%^&*-+=\\|;,."
    lab.boot()
    lab.expect_line("m", text, *(char for char in text))


def test_a_screenshot_is_a_png(lab, tmp_path, monkeypatch):
    """It has a PNG's header and a size, also of a paused machine, and with a relative path."""
    lab.boot()
    lab.driver.pause("m")
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "screen.png"
    lab.driver.screenshot("m", target.relative_to(tmp_path))
    data = target.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack_from(">II", data, 16)
    assert width >= 320
    assert height >= 200
    assert data.endswith(b"IEND\xaeB`\x82")


def test_a_screenshot_that_cannot_be_written(lab, tmp_path):
    """The error names the path."""
    lab.boot()
    with pytest.raises(StoreError, match="no-such-folder"):
        lab.driver.screenshot("m", tmp_path / "no-such-folder" / "screen.png")


@pytest.mark.parametrize("operation", ["screenshot", "send_keys", "forward", "endpoint"])
def test_what_needs_a_running_machine(lab, tmp_path, operation):
    """On a machine that is off, the error says so."""
    lab.driver.create(lab.spec())
    argument = {"screenshot": tmp_path / "s.png", "send_keys": [], "forward": 80, "endpoint": lab.deadline}
    arguments = [argument[operation]]
    if operation == "send_keys":
        from pytest_vmfest.keyboard import parse_keys

        arguments = [parse_keys("a")]
    with pytest.raises(MachineStateError, match="machine 'm' is powered off"):
        getattr(lab.driver, operation)("m", *arguments)


def test_forwards(lab):
    """Each guest port has a loopback port of its own; asked twice, the answer is the same."""
    lab.boot()
    ssh = lab.driver.endpoint("m", lab.deadline)
    web = lab.driver.forward("m", 80)
    assert ssh.host == web.host == "127.0.0.1"
    assert len({ssh.port, web.port, lab.driver.forward("m", 443).port}) == 3
    assert lab.driver.forward("m", 80) == web
    assert lab.driver.forward("m", 22) == ssh
    lab.driver.take_snapshot("m", "s", lab.deadline)
    lab.driver.revert("m", "s", lab.deadline)
    assert lab.driver.endpoint("m", lab.deadline) == ssh
    assert lab.driver.forward("m", 80) == web


def test_only_loopback_is_bound(qemu_lab):
    """QEMU listens on 127.0.0.1 alone, on the ports that it was asked for alone."""
    qemu_lab.boot()
    ports = {qemu_lab.driver.endpoint("m", qemu_lab.deadline).port, qemu_lab.driver.forward("m", 80).port}
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process(qemu_lab.pid("m")).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", port) for port in ports}
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
