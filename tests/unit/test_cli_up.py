"""``vmfest up`` on the fake driver, whose machines live in this process."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from pytest_vmfest import Server
from pytest_vmfest.cli import main, up
from pytest_vmfest.drivers.fake import FakeFault


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on the fake driver, in the store that the command line uses too."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFEST_DRIVER", "fake")
    monkeypatch.delenv("VMFEST_HARDWARE", raising=False)
    with Server("fake") as one:
        yield one


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something happen while the command waits in the foreground."""

    def have(action):
        monkeypatch.setattr(up, "time", SimpleNamespace(sleep=lambda seconds: action()))

    have(lambda: pytest.fail("it waits, and nothing would end that"))
    return have


def vmfest(*arguments):
    """The result of `vmfest up …`."""
    return CliRunner().invoke(main, ["up", *arguments])


def test_detached_machine_stays(server, meanwhile):
    """With --detach the machine is left running, and its ssh command is the only result."""
    result = vmfest("tiny", "--detach")
    assert result.exit_code == 0, result.output
    (machine,) = server.machines()
    assert machine.name.startswith("tiny-")
    assert machine.info.tags["owner"] == "up"
    (line,) = result.stdout.splitlines()
    assert line.startswith("ssh ")
    assert str(machine.endpoint().port) in line
    assert f"vmfest instance destroy {machine.name}" in result.stderr


def test_name_hardware_and_init_script(server, tmp_path):
    """The name is machine and host name, the hardware is as asked, and the script has run as root."""
    script = tmp_path / "init.sh"
    script.write_text("whoami > /tmp/who\nhostname > /tmp/name\n")
    result = vmfest("tiny", "-d", "--name", "web", "--hardware", "medium", "--init-script", str(script))
    assert result.exit_code == 0, result.output
    (machine,) = server.machines()
    assert (machine.name, machine.info.memory_mib, machine.info.cpus) == ("web", 2048, 2)
    remote = server.driver.remote("web", machine.image.login, None)
    assert remote.read_bytes("/tmp/who", None) == b"root\n"
    assert remote.read_bytes("/tmp/name", None) == b"web\n"


def test_name_that_is_taken(server):
    """A second machine of the same name is refused, and the first stays."""
    assert vmfest("tiny", "-d", "--name", "web").exit_code == 0
    result = vmfest("tiny", "-d", "--name", "web")
    assert result.exit_code == 1
    assert "web" in result.stderr
    assert [machine.name for machine in server.machines()] == ["web"]


def test_json_tells_the_machine_and_its_ssh_command(server):
    """--json is the row of `instance list` and the ssh command."""
    told = json.loads(vmfest("tiny", "-d", "--json").stdout)
    (machine,) = server.machines()
    assert told["name"] == machine.name
    assert told["ssh_command"].startswith("ssh ")
    assert told["endpoint"]["port"] == machine.endpoint().port


def test_settings_come_from_the_environment(server, monkeypatch):
    """What the command line does not say, the environment does."""
    monkeypatch.setenv("VMFEST_HARDWARE", "large")
    assert vmfest("tiny", "-d").exit_code == 0
    assert server.machines()[0].info.memory_mib == 4096


def test_stages_are_told(server):
    """While it boots, the user sees the stages, on standard error."""
    stderr = vmfest("tiny", "-d").stderr
    assert stderr.index("creating it") < stderr.index("powering on") < stderr.index("setting up its name")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_foreground_machine_goes_with_a_signal(server, meanwhile, number, status):
    """In the foreground, Ctrl-C and SIGTERM destroy the machine, and tell."""
    inside = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    outside = signal.signal(number, inside)
    seen = []

    def interrupt():
        seen.extend(machine.name for machine in server.machines())
        os.kill(os.getpid(), number)

    meanwhile(interrupt)
    try:
        result = vmfest("tiny")
    finally:
        signal.signal(number, outside)
    assert result.exit_code == status
    assert len(seen) == 1
    assert f"destroying {seen[0]}" in result.stderr
    assert server.machines() == []


def test_second_signal_does_not_disturb_the_clean_up(server, meanwhile, monkeypatch):
    """An impatient second Ctrl-C leaves no machine behind."""
    from pytest_vmfest.node import Node

    destroy = Node.destroy

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        destroy(self)

    monkeypatch.setattr(Node, "destroy", interrupted)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    meanwhile(lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        result = vmfest("tiny")
    finally:
        signal.signal(signal.SIGINT, outside)
    assert result.exit_code == 130
    assert server.machines() == []


def test_foreground_ends_when_the_guest_shuts_down(server, meanwhile):
    """A guest that was shut down ends the command in order, and its machine is removed."""
    meanwhile(lambda: server.machines()[0].power_down())
    result = vmfest("tiny")
    assert result.exit_code == 0, result.output
    assert "has shut down" in result.stderr
    assert server.machines() == []


def test_foreground_ends_when_the_machine_is_destroyed(server, meanwhile):
    """A machine that somebody else destroyed ends the command in order."""
    meanwhile(lambda: server.machines()[0].destroy())
    result = vmfest("tiny")
    assert result.exit_code == 0, result.output
    assert "by somebody else" in result.stderr


def test_boot_that_fails(server):
    """A machine that does not come up is told with its stage, and removed."""
    server.driver.inject(FakeFault.PANICS)
    result = vmfest("tiny")
    server.driver.heal()
    assert result.exit_code == 1
    assert "stage:" in result.stderr
    assert "panic" in result.stderr
    assert server.machines() == []


def test_init_script_that_fails(server, tmp_path):
    """An init script's failure is told with its output, and the machine is removed."""
    script = tmp_path / "init.sh"
    script.write_text("echo no luck; exit 3\n")
    result = vmfest("tiny", "-d", "--init-script", str(script))
    assert result.exit_code == 1
    assert "no luck" in result.stderr
    assert server.machines() == []


@pytest.mark.parametrize(
    ("image", "expected"),
    [("debian-12", "debian-12"), ("Debian_12.4+x", "debian-12-4-x"), ("+", "vm"), ("a" * 80, "a" * 50)],
)
def test_host_name_of_an_image(image, expected):
    """Whatever an image is called, its machine's host name is one."""
    assert up._host_name(image) == expected
