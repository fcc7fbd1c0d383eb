"""Snapshots: of a running machine with its memory, of one that is off without."""

import pytest

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import ConfigurationError, MachineStateError

OFF, RUNNING, PAUSED = MachineState.POWERED_OFF, MachineState.RUNNING, MachineState.PAUSED


def test_memory_and_disk_come_back(lab):
    """After a revert, disk and memory are those of the snapshot, more than once."""
    lab.boot()
    lab.keep_on_disk("m", "old")
    lab.type("m", "half ")
    lab.driver.take_snapshot("m", "here", lab.deadline)
    assert lab.driver.state("m") is RUNNING
    for turn in ("one", "two"):
        lab.expect_line("m", f"half {turn}", turn)
        lab.keep_on_disk("m", turn)
        lab.driver.revert("m", "here", lab.deadline)
        assert lab.driver.state("m") is RUNNING
    lab.driver.power_down("m")
    lab.start()
    assert lab.kept_on_disk("m") == "old"


@pytest.mark.parametrize("taken", [OFF, RUNNING, PAUSED], ids=lambda state: state.name.lower())
@pytest.mark.parametrize("now", MachineState, ids=lambda state: state.name.lower())
def test_a_revert_brings_back_the_state(lab, taken, now):
    """Whatever has become of a machine, after a revert it is as it was when the snapshot was taken."""
    if taken is OFF:
        lab.driver.create(lab.spec())
    else:
        lab.boot()
        lab.type("m", "half ")
    if taken is PAUSED:
        lab.driver.pause("m")
    lab.driver.take_snapshot("m", "here", lab.deadline)
    assert lab.driver.state("m") is taken
    if now is OFF:
        lab.driver.power_down("m")
    else:
        lab.driver.start("m", lab.deadline)
    if now is PAUSED:
        lab.driver.pause("m")
    elif now is MachineState.SAVED:
        lab.driver.save_state("m", lab.deadline)
    elif now is MachineState.ABORTED:
        lab.kill("m")
        lab.await_state("m", now)
    lab.driver.revert("m", "here", lab.deadline)
    assert lab.driver.state("m") is taken
    assert lab.driver.snapshots("m") == ["here"]
    if taken is OFF:
        lab.start()
    else:
        lab.driver.resume("m")
        lab.expect_line("m", "half a line", "a line")


def test_snapshots_are_listed_oldest_first(lab):
    """The list is the same whether the machine runs or not, and a saved state is not in it."""
    lab.boot()
    for name in ("c", "a", "b"):
        lab.driver.take_snapshot("m", name, lab.deadline)
    assert lab.driver.snapshots("m") == ["c", "a", "b"]
    lab.driver.save_state("m", lab.deadline)
    assert lab.driver.snapshots("m") == ["c", "a", "b"]
    lab.driver.power_down("m")
    lab.driver.delete_snapshot("m", "a")
    lab.driver.take_snapshot("m", "a", lab.deadline)
    assert lab.driver.snapshots("m") == ["c", "b", "a"]


@pytest.mark.parametrize("running", [True, False])
def test_deleting(lab, running):
    """A deleted snapshot is gone, the others are not; deleting twice is fine."""
    lab.boot()
    lab.driver.take_snapshot("m", "one", lab.deadline)
    lab.driver.take_snapshot("m", "two", lab.deadline)
    if not running:
        lab.driver.power_down("m")
    lab.driver.delete_snapshot("m", "one")
    lab.driver.delete_snapshot("m", "one")
    assert lab.driver.snapshots("m") == ["two"]
    lab.driver.revert("m", "two", lab.deadline)
    assert lab.driver.state("m") is RUNNING


@pytest.mark.parametrize("name", ["1", "a b", "ünï:cödé", "-x", "saved", "running:x"])
def test_names_of_every_kind(lab, name):
    """A name is the user's, also one that looks like a number, an option or something of ours."""
    lab.boot()
    lab.driver.take_snapshot("m", "other", lab.deadline)
    lab.type("m", "half ")
    lab.driver.take_snapshot("m", name, lab.deadline)
    assert lab.driver.snapshots("m") == ["other", name]
    lab.driver.revert("m", name, lab.deadline)
    lab.driver.power_down("m")
    lab.driver.revert("m", name, lab.deadline)
    lab.expect_line("m", "half a line", "a line")
    lab.driver.power_down("m")
    lab.driver.delete_snapshot("m", name)
    assert lab.driver.snapshots("m") == ["other"]


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 201])
def test_a_name_that_cannot_be_is_refused(lab, name):
    """Nothing is kept under it."""
    lab.driver.create(lab.spec())
    with pytest.raises(ConfigurationError, match="cannot be the name of a snapshot"):
        lab.driver.take_snapshot("m", name, lab.deadline)
    assert lab.driver.snapshots("m") == []


def test_a_name_that_is_taken_is_refused(lab):
    """The snapshot that has the name is unharmed, also if the machine was in another state then."""
    lab.driver.create(lab.spec())
    lab.driver.take_snapshot("m", "here", lab.deadline)
    lab.start()
    with pytest.raises(MachineStateError, match="snapshot named 'here' already"):
        lab.driver.take_snapshot("m", "here", lab.deadline)
    lab.driver.revert("m", "here", lab.deadline)
    assert lab.driver.state("m") is OFF


def test_reverting_to_what_is_not_there(lab):
    """The error lists the snapshots that there are, and the machine goes on."""
    lab.boot()
    lab.driver.take_snapshot("m", "here", lab.deadline)
    with pytest.raises(MachineStateError, match=r"no snapshot named 'there'\n.*here"):
        lab.driver.revert("m", "there", lab.deadline)
    assert lab.driver.state("m") is RUNNING


def test_no_snapshot_of_a_saved_state(lab):
    """What is saved is not running and not off; the error says what to do."""
    lab.boot()
    lab.driver.save_state("m", lab.deadline)
    with pytest.raises(MachineStateError, match="is saved and cannot have a snapshot taken"):
        lab.driver.take_snapshot("m", "here", lab.deadline)
    assert lab.driver.snapshots("m") == []
