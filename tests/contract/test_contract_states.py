"""The states of a machine, and the operations that lead from one to another."""

import pytest

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import MachineNotFoundError, MachineStateError, WaitTimeoutError
from pytest_vmfest.waiting import Deadline

OFF, RUNNING, PAUSED = MachineState.POWERED_OFF, MachineState.RUNNING, MachineState.PAUSED
SAVED, ABORTED = MachineState.SAVED, MachineState.ABORTED


def bring(lab, state):
    """Create the machine ``m`` and bring it into a state."""
    if state is OFF:
        lab.driver.create(lab.spec())
        return
    lab.boot()
    if state is PAUSED:
        lab.driver.pause("m")
    elif state is SAVED:
        lab.driver.save_state("m", lab.deadline)
    elif state is ABORTED:
        lab.kill("m")
        lab.await_state("m", ABORTED)
    assert lab.driver.state("m") is state


@pytest.mark.parametrize("state", MachineState, ids=lambda state: state.name.lower())
@pytest.mark.parametrize(
    ("operation", "outcomes"),
    [
        ("start", {OFF: RUNNING, RUNNING: RUNNING, PAUSED: RUNNING, SAVED: RUNNING, ABORTED: RUNNING}),
        ("pause", {OFF: None, RUNNING: PAUSED, PAUSED: PAUSED, SAVED: None, ABORTED: None}),
        ("resume", {OFF: None, RUNNING: RUNNING, PAUSED: RUNNING, SAVED: None, ABORTED: None}),
        ("stop", {OFF: OFF, RUNNING: OFF, PAUSED: OFF, SAVED: SAVED, ABORTED: ABORTED}),
        ("power_down", {OFF: OFF, RUNNING: OFF, PAUSED: OFF, SAVED: OFF, ABORTED: OFF}),
        ("save_state", {OFF: None, RUNNING: SAVED, PAUSED: SAVED, SAVED: SAVED, ABORTED: None}),
    ],
)
def test_every_operation_in_every_state(lab, state, operation, outcomes):
    """Each leads to its state and can be repeated; where it cannot, it says so and changes nothing."""
    bring(lab, state)
    arguments = [lab.deadline] if operation in ("start", "stop", "save_state") else []
    for _ in range(2):
        if outcomes[state] is None:
            with pytest.raises(MachineStateError, match=rf"machine 'm' is {state.value} and cannot"):
                getattr(lab.driver, operation)("m", *arguments)
            assert lab.driver.state("m") is state
        else:
            getattr(lab.driver, operation)("m", *arguments)
            assert lab.driver.state("m") is outcomes[state]


@pytest.mark.parametrize("state", MachineState, ids=lambda state: state.name.lower())
def test_destroy_in_every_state(lab, state):
    """In whatever state a machine is, destroy removes every trace of it, and can be repeated."""
    bring(lab, state)
    lab.driver.destroy("m")
    assert lab.left_over() == []
    with pytest.raises(MachineNotFoundError, match="no machine named 'm'"):
        lab.driver.state("m")
    lab.driver.destroy("m")


def test_power_down_keeps_the_disk(lab):
    """What the guest had written to its disk is there after its power was cut."""
    lab.boot()
    lab.keep_on_disk("m", "precious")
    lab.driver.power_down("m")
    lab.start()
    assert lab.kept_on_disk("m") == "precious"


def test_a_paused_guest_cannot_be_typed_to(lab):
    """Keys for a halted guest would be lost, so they are refused; after resume it goes on in its line."""
    lab.boot()
    lab.type("m", "half a ")
    lab.driver.pause("m")
    assert lab.driver.standstill("m") == ""  # the user has halted it
    with pytest.raises(MachineStateError, match="paused"):
        lab.type("m", "lost")
    lab.driver.resume("m")
    lab.expect_line("m", "half a line", "line")


def test_saved_state_brings_memory_back(lab):
    """After save_state and start the guest goes on in the middle of the line, without booting."""
    lab.boot()
    lab.type("m", "half a ")
    before = lab.driver.console("m")
    lab.driver.save_state("m", lab.deadline)
    lab.driver.start("m", lab.deadline)
    assert lab.driver.console("m") == before
    lab.expect_line("m", "half a line", "line")


def test_a_dropped_saved_state_is_gone(lab):
    """power_down drops the saved state: the next start boots."""
    lab.boot()
    lab.driver.save_state("m", lab.deadline)
    lab.driver.power_down("m")
    lab.start()


def test_a_guest_that_switches_itself_off(lab):
    """A guest that shuts down by itself is powered off, not aborted, and can be started again."""
    lab.boot()
    lab.switch_off_inside("m")
    lab.await_state("m", OFF)
    lab.start()


def test_a_killed_machine_is_aborted_and_boots_anew(lab):
    """When the hypervisor's process is killed, the machine says so and can be started again."""
    lab.boot()
    lab.kill("m")
    lab.await_state("m", ABORTED)
    assert [info.state for info in lab.driver.machines()] == [ABORTED]
    lab.start()


@pytest.mark.parametrize("operation", ["pause", "resume", "power_down", "state", "console", "snapshots"])
def test_operations_on_a_machine_that_is_not_there(lab, operation):
    """A name that nobody has is told as such."""
    with pytest.raises(MachineNotFoundError, match="no machine named 'nobody'"):
        getattr(lab.driver, operation)("nobody")


def test_destroying_what_is_not_there_is_fine(lab):
    """Also a name that no machine can have."""
    lab.driver.destroy("nobody")
    lab.driver.destroy("../..")
    assert lab.home.exists()


def test_a_guest_that_ignores_the_power_button(lab):
    """At the deadline the error names the machine, and the machine still runs."""
    lab.driver.create(lab.spec())
    if lab.driver_name == "fake":
        from pytest_vmfest.drivers.fake import FakeFault

        lab.driver.inject(FakeFault.IGNORES_STOP)
    else:
        # No boot loader: the firmware waits for ever.
        lab.driver.destroy("m")
        lab.image.disk.write_bytes(bytes(1 << 20))
        lab.driver.create(lab.spec())
    lab.driver.start("m", lab.deadline)
    with pytest.raises(WaitTimeoutError, match="machine 'm': the guest did not shut down"):
        lab.driver.stop("m", Deadline(0.3))
    assert lab.driver.state("m") is RUNNING
