"""Machines frozen with their memory: others go on from there, as often as one likes."""

from dataclasses import replace

import pytest

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import MachineStateError, NotSupportedError, ThawError
from pytest_vmfest.specs import HardwareModel, PrivateNic

RUNNING = MachineState.RUNNING


@pytest.fixture
def frozen(lab):
    """The folder of a frozen guest that kept ``old`` on its disk, with half a line in its memory."""
    try:
        lab.driver.freezing_key(lab.spec())
    except NotSupportedError as error:
        pytest.skip(error.message)
    folder = lab.home / "frozen"
    lab.boot("first", freeze_to=folder)
    lab.keep_on_disk("first", "old")
    lab.type("first", "half ")
    lab.driver.freeze("first", lab.deadline)
    assert [info.name for info in lab.driver.machines()] == []
    return folder


def go_on(lab, folder, name="m", **changes):
    """Create a machine that goes on from a frozen one, and start it."""
    lab.driver.create(lab.spec(name, thaw_from=folder, **changes))
    lab.driver.start(name, lab.deadline)
    assert lab.driver.state(name) is RUNNING


def test_memory_and_disk_are_there(lab, frozen):
    """A machine goes on in the middle of a line, and its console tells what was said before."""
    go_on(lab, frozen)
    lab.expect_line("m", "half a line", "a line")
    assert "ready" in lab.driver.console("m")
    lab.driver.power_down("m")
    lab.start("m")
    assert lab.kept_on_disk("m") == "old"


def test_several_at_once_do_not_see_one_another(lab, frozen):
    """Each has memory and disk of its own, whatever the others do; also one that is made afterwards."""
    for name in ("one", "two"):
        go_on(lab, frozen, name)
    for name in ("one", "two"):
        lab.expect_line(name, f"half {name}", name)
        lab.keep_on_disk(name, name)
    go_on(lab, frozen, "three")
    lab.expect_line("three", "half three", "three")
    for name, kept in {"one": "one", "two": "two", "three": "old"}.items():
        lab.driver.power_down(name)
        lab.start(name)
        assert lab.kept_on_disk(name) == kept


def test_nobody_writes_to_the_frozen_files(lab, frozen):
    """They stay byte for byte the same."""
    before = {path: path.read_bytes() for path in frozen.iterdir()}
    go_on(lab, frozen)
    lab.expect_line("m", "half a line", "a line")
    lab.keep_on_disk("m", "new")
    lab.driver.power_down("m")
    lab.driver.destroy("m")
    assert {path: path.read_bytes() for path in frozen.iterdir()} == before


def test_snapshots_of_a_machine_that_went_on(lab, frozen):
    """Its snapshots hold all of its memory, also for another process of the hypervisor."""
    go_on(lab, frozen)
    lab.type("m", "or more ")
    lab.driver.take_snapshot("m", "here", lab.deadline)
    lab.expect_line("m", "half or more later", "later")
    lab.driver.revert("m", "here", lab.deadline)
    lab.expect_line("m", "half or more again", "again")
    lab.driver.power_down("m")
    lab.driver.revert("m", "here", lab.deadline)
    lab.expect_line("m", "half or more anew", "anew")


def test_a_saved_machine_that_went_on(lab, frozen):
    """Its memory can be kept on disk and gone on from."""
    go_on(lab, frozen)
    lab.driver.save_state("m", lab.deadline)
    lab.driver.start("m", lab.deadline)
    lab.expect_line("m", "half way", "way")


def test_the_lateness(lab, frozen):
    """The time that the guest stood still is told, if it is known; one that has booted is not late."""
    go_on(lab, frozen)
    late_s = lab.driver.lateness_s("m")
    if late_s is None:
        pytest.skip(f"{lab.driver_name} does not know when a guest goes on")
    assert 0 < late_s < 120
    go_on(lab, frozen, "later")
    assert lab.driver.lateness_s("later") > late_s
    lab.boot("booted")
    assert lab.driver.lateness_s("booted") == 0
    lab.driver.power_down("m")
    lab.start("m")
    assert lab.driver.lateness_s("m") == 0


def test_what_the_key_depends_on(lab, frozen):
    """Another name, tag or network makes no difference; hardware, network mode, NICs and the image do."""
    key = lab.driver.freezing_key
    alike = lab.spec("other", tags={"run": "1"})
    assert key(alike) == key(lab.spec())
    nic = PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1")
    others = [
        lab.spec(hardware=HardwareModel("larger", 96, 1)),
        lab.spec(network="internal" if lab.network == "local" else "local"),
        lab.spec(nics=(nic,)),
    ]
    assert len({key(spec) for spec in (alike, *others)}) == 4
    assert key(lab.spec(nics=(replace(nic, network="n", mac="52:54:00:00:00:02"),))) == key(others[2])
    before = key(alike)
    lab.image.disk.write_bytes(lab.image.disk.read_bytes() + bytes(512))
    assert key(alike) != before


@pytest.mark.parametrize("how", ["off", "not made for it"])
def test_what_cannot_be_frozen(lab, frozen, how):
    """A machine that is off, or that was not made to be frozen, is refused and stays."""
    if how == "off":
        lab.driver.create(lab.spec(freeze_to=lab.home / "never"))
    else:
        lab.boot()
    with pytest.raises(MachineStateError, match="'m'"):
        lab.driver.freeze("m", lab.deadline)
    assert [info.name for info in lab.driver.machines()] == ["m"]


def test_files_that_are_damaged(lab, frozen):
    """A machine that cannot go on is told of with the hypervisor's own words, and no process is left."""
    for path in frozen.glob("state*"):
        path.chmod(0o600)
        path.write_bytes(b"not what it was" * 100)
    lab.driver.create(lab.spec(thaw_from=frozen))
    with pytest.raises(ThawError, match="'m'"):
        lab.driver.start("m", lab.deadline)
    assert lab.driver.state("m") is not RUNNING
    lab.driver.destroy("m")
    assert lab.left_over() == []
