"""``vmfest instance`` on the fake driver, whose machines live in this process."""

import json
import os
import shlex

import pytest
from click.testing import CliRunner

from pytest_vmfest import FakeDriver, MachineState, Server
from pytest_vmfest.cli import instance, main
from pytest_vmfest.drivers.fake import FakeFault
from pytest_vmfest.drivers.fake.world import world_of


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on the fake driver, in the store that the command line uses too."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFEST_DRIVER", "fake")
    with Server("fake") as one:
        yield one


@pytest.fixture
def machine(server):
    """A running machine."""
    one = server.instance("vm-1", "tiny", "small", tags={"owner": "pytest", "run": "12ab", "node": "db-0"})
    one.start()
    return one


def vmfest(*arguments):
    """The result of `vmfest instance …`."""
    return CliRunner().invoke(main, ["instance", *arguments])


def listed():
    """What `instance list --json` tells, by name."""
    result = vmfest("list", "--json")
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)}


def test_list_of_none(server):
    """Without machines, the table is empty and the user is told what to do; JSON is an empty list."""
    assert "vmfest up" in vmfest("list").stderr
    assert listed() == {}


def test_list_tells_all_that_is_known(server, machine):
    """Each machine has its state, image, size, endpoint, tags and age."""
    server.instance("vm-2", "tiny")
    first, second = listed().values()
    endpoint = machine.endpoint()
    assert first == {
        "name": "vm-1",
        "state": "running",
        "image": "tiny",
        "memory_mib": 1024,
        "cpus": 1,
        "endpoint": {"host": endpoint.host, "port": endpoint.port},
        "tags": {"owner": "pytest", "run": "12ab", "node": "db-0"},
        "created": machine.info.created,
    }
    assert (second["name"], second["state"], second["endpoint"]) == ("vm-2", "powered off", None)
    head, one, two = vmfest("list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "IMAGE", "MEMORY", "CPUS", "SSH", "AT", "OWNER", "AGE"]
    assert one.split()[:5] == ["vm-1", "running", "tiny", "1024", "MiB"]
    assert "pytest 12ab db-0" in one
    assert "powered off" in two


def test_pause_resume_stop_start(machine):
    """Each verb brings the machine into its state, and again is fine."""
    for verb, state in [
        ("pause", MachineState.PAUSED),
        ("pause", MachineState.PAUSED),
        ("resume", MachineState.RUNNING),
        ("stop", MachineState.POWERED_OFF),
        ("start", MachineState.RUNNING),
    ]:
        result = vmfest(verb, "vm-1")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("vm-1: ")
        assert machine.state is state


def test_verbs_go_on_after_a_failure(server, machine, monkeypatch):
    """What fails with one machine is done with the others; every failure is told, and the status is 1."""
    server.instance("vm-2", "tiny").start()
    server.instance("vm-3", "tiny")
    result = vmfest("pause", "vm-3", "vm-2")
    assert result.exit_code == 1
    assert result.stdout == "vm-2: paused\n"
    assert "vm-3: " in result.stderr


@pytest.mark.parametrize("verb", ["pause", "destroy", "console", "ssh"])
def test_unknown_machine(machine, verb):
    """A name that no machine has is told with those that there are."""
    result = vmfest(verb, "wm-1")
    assert result.exit_code == 1
    assert "there is no machine wm-1" in result.stderr
    assert "vm-1" in result.stderr


def test_destroy_by_name(server, machine):
    """Named machines are gone afterwards, in whatever state they were; others stay."""
    server.instance("vm-2", "tiny")
    server.instance("vm-3", "tiny")
    assert vmfest("destroy", "vm-1", "vm-2").stdout == "vm-1: destroyed\nvm-2: destroyed\n"
    assert list(listed()) == ["vm-3"]


def test_destroy_all_with_the_networks_of_groups(server):
    """--all leaves no machine, and no private network of a group either."""
    group = server.launch_group(2, image="tiny")
    network = group["node-0"].instance.info.tags["group"]
    first, _ = listed()
    assert vmfest("destroy", first).exit_code == 0
    assert world_of(server.home).networks == {network}
    assert vmfest("destroy", "--all").exit_code == 0
    assert world_of(server.home).networks == set()
    assert listed() == {}
    assert vmfest("destroy", "--all").exit_code == 0


def test_destroy_that_fails(server, machine):
    """A machine that cannot be destroyed is told, with status 1, and the others are gone."""
    server.instance("vm-2", "tiny")
    server.driver.inject(FakeFault.DESTROY_FAILS, machine="vm-1")
    result = vmfest("destroy", "--all")
    server.driver.heal()
    assert result.exit_code == 1
    assert "vm-1: " in result.stderr
    assert list(listed()) == ["vm-1"]


@pytest.mark.parametrize("arguments", [[], ["--all", "vm-1"]])
def test_destroy_of_nothing_or_too_much(machine, arguments):
    """Neither names nor --all, or both, is a wrong use, and nothing is destroyed."""
    assert vmfest("destroy", *arguments).exit_code == 2
    assert list(listed()) == ["vm-1"]


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The programs that this process would have become."""
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text("")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent))
    calls = []
    monkeypatch.setattr(os, "execv", lambda program, words: calls.append((program, words)))
    return calls


@pytest.mark.parametrize(
    ("command", "passed_on"),
    [
        ([], []),
        (["uname -a | cat"], ["uname -a | cat"]),
        (["--", "sh", "-c", "echo 'a  b'"], [shlex.join(["sh", "-c", "echo 'a  b'"])]),
        (["--", "ls", "-l", "--help"], ["ls -l --help"]),
    ],
)
def test_ssh_becomes_the_ssh_program(machine, executed, command, passed_on):
    """The words are those of the node's ssh command; one word more is shell text, several are quoted."""
    assert vmfest("ssh", "vm-1", *command).exit_code == 0
    ((program, words),) = executed
    endpoint = machine.endpoint()
    assert program.endswith("/bin/ssh")
    assert words[0] == "ssh"
    assert str(endpoint.port) in words
    user_at_host = f"{machine.image.login.username}@{endpoint.host}"
    assert words[words.index(user_at_host) + 1 :] == passed_on


@pytest.mark.parametrize(("verb", "advice"), [("pause", "resume"), ("stop", "start")])
def test_ssh_into_a_machine_that_does_not_run(machine, executed, verb, advice):
    """A machine that cannot answer is told at once, with the command that helps."""
    vmfest(verb, "vm-1")
    result = vmfest("ssh", "vm-1")
    assert result.exit_code == 1
    assert f"vmfest instance {advice} vm-1" in result.stderr
    assert executed == []


def test_ssh_without_an_ssh_program(machine, monkeypatch, tmp_path):
    """Where there is no ssh program, its package is named."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = vmfest("ssh", "vm-1")
    assert result.exit_code == 1
    assert "apt-get install openssh-client" in result.stderr


def test_console_prints_what_there_is(machine):
    """The console is printed byte for byte, once."""
    result = vmfest("console", "vm-1")
    assert result.exit_code == 0
    assert result.stdout == machine.console()


def test_console_follows_until_the_machine_is_off(machine, monkeypatch):
    """--follow prints what comes, what comes last included, and ends with the machine."""
    monkeypatch.setattr(instance, "_CONSOLE_INTERVAL_S", 0.001)
    texts = iter(["boot\n", "boot\nready\n", "boot\nready\nbye\n"])

    def console(self, name):
        text = next(texts)
        if "ready" in text:
            self.power_down(name)
        return text

    monkeypatch.setattr(FakeDriver, "console", console)
    result = vmfest("console", "vm-1", "--follow")
    assert result.exit_code == 0
    assert result.stdout == "boot\nready\nbye\n"


def test_console_follow_ends_when_the_machine_is_destroyed(machine, monkeypatch):
    """A machine that is destroyed meanwhile ends --follow in order."""
    monkeypatch.setattr(instance, "_CONSOLE_INTERVAL_S", 0.001)

    def console(self, name):
        self.destroy(name)
        return "boot\n"

    monkeypatch.setattr(FakeDriver, "console", console)
    result = vmfest("console", "vm-1", "--follow")
    assert (result.exit_code, result.stdout) == (0, "boot\n")
