"""Starts that go well and wrong, alone and in groups, on the fake driver."""

import re
import threading

import pytest

from pytest_vmfest import DestroyError, GroupStartError, Server, StartError
from pytest_vmfest.drivers.fake import FakeFault
from pytest_vmfest.errors import (
    AuthenticationError,
    ConfigurationError,
    HostKeyError,
    MachineExistsError,
    StoreError,
)
from pytest_vmfest.request import VmRequest
from pytest_vmfest.specs import HardwareModel
from pytest_vmfest.waiting import Deadline


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor; whatever a test does, no machine and no network may be left of it."""
    with Server("fake", home=tmp_path, boot_timeout_s=30) as server:
        yield server
        server.driver.heal()
        assert [info.name for info in server.driver.machines()] == []


def destroy_all(server):
    """Destroy every machine that there is."""
    for info in server.driver.machines():
        server.driver.destroy(info.name)


@pytest.mark.parametrize(
    ("fault", "stages", "message"),
    [
        (FakeFault.CREATE_FAILS, {"created"}, "cannot be created"),
        (FakeFault.START_FAILS, {"running"}, "does not start"),
        (FakeFault.DIES, {"running", "kernel"}, "is aborted"),
        (FakeFault.PANICS, {"running", "kernel"}, "Kernel panic - not syncing"),
    ],
)
def test_a_failing_start_tells_its_stage_and_leaves_nothing(server, fault, stages, message):
    """The error names the node, the stage and the cause; the machine is gone."""
    server.driver.inject(fault)
    with pytest.raises(StartError, match=message) as caught:
        server.launch("db", image="tiny")
    assert caught.value.stage in stages
    assert "node 'db' did not start" in str(caught.value)
    assert "image tiny, 512 MiB, 1 CPU, driver fake" in str(caught.value)


def test_a_guest_that_never_answers_is_given_up_at_the_deadline(server):
    """The boot timeout ends the wait, and the error says how long it was."""
    server.boot_timeout_s = 0.2
    server.driver.inject(FakeFault.UNREACHABLE)
    with pytest.raises(StartError, match=r"of 0\.2 s"):
        server.launch(image="tiny")


def test_one_failure_takes_the_whole_group_down(server):
    """When one node fails, the others are removed, and the error names the one."""
    server.driver.inject(FakeFault.START_FAILS, machine="web-1-*")
    with pytest.raises(GroupStartError, match="1 of 3 nodes did not start") as caught:
        server.launch_group({"db": 1, "web": 2}, image="tiny")
    assert list(caught.value.failures) == ["web-1"]


def test_every_failure_of_a_group_is_told(server):
    """Nodes that fail by themselves are all named; those given up because of them are not."""
    server.driver.inject(FakeFault.CREATE_FAILS)
    with pytest.raises(GroupStartError) as caught:
        server.launch_group(2, image="tiny")
    assert caught.value.failures
    assert set(caught.value.failures) <= {"node-0", "node-1"}
    assert all(name in str(caught.value) for name in caught.value.failures)


def test_each_node_of_a_group_fails_in_its_own_way(server):
    """The error tells what went wrong with each node, one that never answered included."""
    server.driver.inject(FakeFault.UNREACHABLE, machine="node-0-*")
    server.driver.inject(FakeFault.START_FAILS, machine="node-1-*")
    server.boot_timeout_s = 0.5
    with pytest.raises(GroupStartError) as caught:
        server.launch_group(2, image="tiny")
    assert "does not start" in str(caught.value.failures["node-1"])


def test_a_machine_that_cannot_be_destroyed_is_told_and_the_others_are_gone(server):
    """All are tried; the error names the one that is still there."""
    group = server.launch_group(3, image="tiny")
    server.driver.inject(FakeFault.DESTROY_FAILS, machine="node-1-*", times=1)
    with pytest.raises(DestroyError, match="node-1"):
        group.destroy()
    assert [info.tags["node"] for info in server.driver.machines()] == ["node-1"]
    group.destroy()


def test_a_failing_init_script_is_told_with_its_output(server):
    """The init script's own words are in the error, and its machine is gone."""
    with pytest.raises(StartError, match="exited with 1") as caught:
        server.launch(image="tiny", init_script="echo no such package >&2; false")
    assert caught.value.stage == "init_script"
    assert "no such package" in str(caught.value)


def test_an_init_script_can_be_a_file(server, tmp_path):
    """A path's content is run; a path that cannot be read is a clear error."""
    script = tmp_path / "init.sh"
    script.write_text("echo done > /root/init")
    with server.launch(image="tiny", init_script=script) as node:
        assert node.read_text("/root/init") == "done\n"
    with pytest.raises(ConfigurationError, match=r"none\.sh cannot be read"):
        server.launch(image="tiny", init_script=tmp_path / "none.sh")


@pytest.mark.parametrize("network", ["local", "bridged"])
def test_a_launch_that_is_refused_spares_the_machine_that_has_the_name(server, network):
    """Whatever a launch fails on before its machine exists, another one of that name is not destroyed."""
    with server.instance("mine", "tiny") as machine:
        request = VmRequest(network=network)
        with pytest.raises(StartError):
            server.launch_request(request, server.image("tiny"), name="mine", machine="mine", tags={})
        assert server.find("mine").state is machine.state


def test_a_failing_node_ends_the_init_scripts_of_the_others(server):
    """A group's start does not wait for scripts that are still running when another node has failed."""
    server.driver.respond("mine", lambda call: int(call.machine.startswith("node-0")))
    deadline = Deadline(20)
    with pytest.raises(GroupStartError, match="1 of 2"):
        server.launch_group(2, image="tiny", init_script="mine && sleep 60")
    assert not deadline.expired


def test_failed_machines_can_be_kept(server):
    """With keep_failed the machines of a group that failed stay as they are, its network too."""
    server.driver.inject(FakeFault.START_FAILS, machine="node-1-*")
    request = VmRequest(nodes=2)
    with pytest.raises(GroupStartError) as caught:
        server.launch_group_request(request, server.image("tiny"), keep_failed=True)
    names = {info.name for info in server.driver.machines()}
    assert set(caught.value.kept) == names
    assert any(name.startswith("node-1-") for name in names)
    destroy_all(server)


def test_a_node_that_cannot_be_removed_when_given_up_is_told(server):
    """A group's error does not claim that all were removed when one could not be."""
    server.boot_timeout_s = 2
    server.driver.inject(FakeFault.START_FAILS, machine="b-0-*")
    server.driver.inject(FakeFault.UNREACHABLE, machine="a-0-*")
    server.driver.inject(FakeFault.DESTROY_FAILS, machine="a-0-*")
    with pytest.raises(GroupStartError, match=r"a-0-.*cannot be destroyed"):
        server.launch_group({"a": 1, "b": 1}, image="tiny")
    server.driver.heal()
    destroy_all(server)


def test_a_taken_machine_name_is_refused_and_its_owner_unharmed(server):
    """A machine of the same name is neither replaced nor destroyed."""
    with server.instance("mine", "tiny") as machine:
        with pytest.raises(MachineExistsError):
            server.instance("mine", "tiny")
        assert server.find("mine").state is machine.state


def test_more_memory_than_the_host_has_is_refused_at_once(server):
    """A group that cannot fit is not begun."""
    with pytest.raises(ConfigurationError, match="do not fit this host"):
        server.launch_group(2, image="tiny", hardware=HardwareModel("huge", 1 << 30, 1))


def test_an_interrupt_while_a_group_starts_leaves_nothing(server, monkeypatch):
    """Ctrl-C during a start ends the other starts and removes what they made."""
    import pytest_vmfest.launcher as launcher

    def interrupted(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.launch_group(2, image="tiny")
    assert server.driver.machines() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vmfest-launch")]


def test_a_node_that_does_not_answer_is_given_up_at_once(server):
    """The others do not wait for it when one has failed."""
    server.boot_timeout_s = 60
    server.driver.inject(FakeFault.START_FAILS, machine="b-0-*")
    server.driver.inject(FakeFault.UNREACHABLE, machine="a-0-*")
    deadline = Deadline(30)
    with pytest.raises(GroupStartError, match="1 of 2 nodes did not start"):
        server.launch_group({"a": 1, "b": 1}, image="tiny")
    assert not deadline.expired
    assert server.machines() == []


@pytest.mark.parametrize("fault", [FakeFault.START_FAILS, FakeFault.DIES, FakeFault.PANICS])
def test_a_boot_that_fails_is_tried_again_and_told(tmp_path, fault):
    """The second machine becomes the node; a line tells why there was a first one."""
    told = []
    with Server("fake", home=tmp_path, boot_retries=1, progress=told.append) as server:
        server.driver.inject(fault, times=1)
        with server.launch("db", image="tiny") as node:
            assert node.check_output("hostname") == "db"
            assert len(server.machines()) == 1
            assert list(node.timings)[:3] == ["failed_start", "clone", "boot"]
        assert server.machines() == []
    (step,) = told
    assert re.fullmatch(r"did not come up: stage \w+, after .* s: .*; trying again .*", step.text)


def test_when_all_tries_fail_each_is_told(server):
    """The error tells of all machines; the seconds are those since the request."""
    server.boot_retries = 1
    server.boot_timeout_s = 0.3
    server.driver.inject(FakeFault.PANICS, times=1)
    server.driver.inject(FakeFault.UNREACHABLE)
    with pytest.raises(StartError, match=r"no answer within 0\.\d+ s") as caught:
        server.launch("db", image="tiny")
    before = r"another machine had failed before: stage running, after 0.0 s: .*panicked"
    assert re.search(before, str(caught.value))
    assert caught.value.elapsed_s >= 0.3


def test_the_seconds_of_a_start_that_fails(server, monkeypatch):
    """Those of the last boot, by which its time is up, and, where they differ, those since the request."""
    server.boot_retries = 1
    server.boot_timeout_s = 0.3
    server.driver.inject(FakeFault.UNREACHABLE)
    with pytest.raises(StartError) as caught:
        server.launch("db", image="tiny")
    said = re.search(
        r"after (\S+) s of 0\.3 s; (\S+) s since it was asked for$", str(caught.value), re.MULTILINE
    )
    assert said
    assert float(said[1]) < caught.value.elapsed_s
    assert float(said[2]) == round(caught.value.elapsed_s, 1)
    server.boot_retries = 0
    with pytest.raises(StartError, match=r"(?m)after \S+ s of 0\.3 s$"):
        server.launch("db", image="tiny")


@pytest.mark.parametrize("case", ["create", "init_script", "none"])
def test_only_the_boot_is_tried_again(server, case):
    """What is not of the boot fails at once, and nothing is tried again unless it is wished."""
    server.boot_retries = 0 if case == "none" else 1
    fault = FakeFault.CREATE_FAILS if case == "create" else FakeFault.START_FAILS
    if case != "init_script":
        server.driver.inject(fault, times=1)
    with pytest.raises(StartError) as caught:
        server.launch(image="tiny", init_script="false")
    assert caught.value.stage == {"create": "created", "init_script": "init_script", "none": "running"}[case]
    assert "before" not in str(caught.value)


@pytest.mark.parametrize("error", [AuthenticationError, HostKeyError, StoreError, ConfigurationError])
def test_what_another_machine_would_not_help_is_not_tried_again(server, monkeypatch, error):
    """Wrong credentials, a full disk and wrong settings are told at once."""
    calls = []

    def remote(name, login, deadline, *, watch):
        calls.append(name)
        raise error("that is how it is")

    server.boot_retries = 3
    monkeypatch.setattr(server.driver, "remote", remote)
    with pytest.raises(StartError, match="that is how it is"):
        server.launch(image="tiny")
    assert len(calls) == 1


def test_in_a_group_only_the_failed_node_is_tried_again(server):
    """The other nodes go on meanwhile."""
    server.boot_retries = 1
    server.driver.inject(FakeFault.START_FAILS, machine="node-1-*", times=1)
    with server.launch_group(3, image="tiny") as group:
        assert {name: result.stdout for name, result in group.run("hostname").items()} == {
            name: f"{name}\n" for name in ("node-0", "node-1", "node-2")
        }


def test_a_group_that_is_given_up_tries_no_more(server):
    """When one node has failed for good, another one's failed boot is the end of it."""
    server.boot_retries = 100
    server.boot_timeout_s = 0.1
    server.driver.inject(FakeFault.UNREACHABLE, machine="a-0-*")
    server.driver.inject(FakeFault.CREATE_FAILS, machine="b-0-*")
    deadline = Deadline(5)
    with pytest.raises(GroupStartError, match="1 of 2"):
        server.launch_group({"a": 1, "b": 1}, image="tiny")
    assert not deadline.expired


def test_a_machine_that_cannot_be_destroyed_is_not_followed_by_another(server):
    """Its name is taken, and the user has to know."""
    server.boot_retries = 1
    server.driver.inject(FakeFault.START_FAILS)
    server.driver.inject(FakeFault.DESTROY_FAILS, times=1)
    with pytest.raises(StartError, match="cannot be destroyed"):
        server.launch(image="tiny")
    destroy_all(server)


def test_the_last_try_can_be_kept(server):
    """With keep_failed, the machine of the last try stays."""
    server.boot_retries = 1
    server.driver.inject(FakeFault.START_FAILS)
    request = VmRequest()
    with pytest.raises(StartError) as caught:
        server.launch_request(request, server.image("tiny"), tags={}, keep_failed=True)
    assert [machine.name for machine in server.machines()] == list(caught.value.kept)
    destroy_all(server)
