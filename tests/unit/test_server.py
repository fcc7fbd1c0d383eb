"""The server: vmfest's own story, and finding machines again, on the fake driver."""

import pytest

from pytest_vmfest import MachineState, Server
from pytest_vmfest.errors import ConfigurationError, MachineNotFoundError


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor."""
    with Server("fake", home=tmp_path) as server:
        yield server


def test_the_story_of_one_machine(server):
    """Create, start, pause, resume, power down and destroy, each idempotent."""
    machine = server.instance("backup-machine", "ubuntu-10-10-64bit", "micro")
    assert machine.state is MachineState.POWERED_OFF
    for step, state in [
        (machine.start, MachineState.RUNNING),
        (machine.pause, MachineState.PAUSED),
        (machine.resume, MachineState.RUNNING),
        (machine.save_state, MachineState.SAVED),
        (machine.start, MachineState.RUNNING),
        (machine.stop, MachineState.POWERED_OFF),
        (machine.start, MachineState.RUNNING),
        (machine.power_down, MachineState.POWERED_OFF),
    ]:
        step()
        step()
        assert machine.state is state
    machine.destroy()
    machine.destroy()
    with pytest.raises(MachineNotFoundError):
        _ = machine.state


def test_six_clones_of_one_model(server):
    """Many instances of one model at once, found by name, and all gone afterwards."""
    machines = [server.instance(f"c{number}", "ubuntu-10-10-64bit", "micro") for number in range(6)]
    for machine in machines:
        machine.start()
    assert [machine.name for machine in server.machines()] == [f"c{number}" for number in range(6)]
    assert server.find("c3").state is MachineState.RUNNING
    for machine in machines:
        machine.destroy()
    assert server.machines() == []


def test_an_unknown_machine_is_told_with_those_there_are(server):
    """The error lists the names."""
    with server.instance("there", "tiny"), pytest.raises(MachineNotFoundError, match="there are: there"):
        server.find("elsewhere")


def test_what_a_machine_is_made_of(server):
    """Hardware, minimums, image and tags end up in the machine's listing."""
    with server.instance("box", "tiny", "medium", tags={"owner": "me"}) as machine:
        info = machine.info
        assert (info.image, info.memory_mib, info.cpus, dict(info.tags)) == ("tiny", 2048, 2, {"owner": "me"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Not A Host", "image": "tiny"}, "not a host name"),
        ({"name": "box", "image": "tiny", "hardware": "huge"}, "known: micro, small, medium, large"),
        ({"name": "box", "image": "tiny", "network": "wifi"}, "one of local, bridged, nat, internal"),
    ],
)
def test_wrong_arguments(server, arguments, message):
    """Each is refused by name, and no machine is made."""
    with pytest.raises(ConfigurationError, match=message):
        server.instance(**arguments)
    assert server.machines() == []


def test_unknown_drivers_and_urls():
    """An unknown driver lists the known; a url is refused where no driver takes one."""
    with pytest.raises(ConfigurationError, match="known: auto, virtualbox, qemu, fake"):
        Server("hyperv")
    with pytest.raises(ConfigurationError, match="takes no url"):
        Server("qemu", url="http://localhost:18083")


def test_nothing_is_touched_before_the_first_use(tmp_path):
    """Making a server creates no folder and needs no hypervisor."""
    Server("qemu", home=tmp_path / "home").close()
    assert not (tmp_path / "home").exists()
