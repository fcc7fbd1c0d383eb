"""Machines in VirtualBox's registry, and what may happen to them there. No machine is started."""

import signal
import subprocess
import sys
import textwrap

import pytest

from conftest import WHY_NOT
from pytest_vmfest.drivers.base import DriverSettings, MachineState, PropertyKind
from pytest_vmfest.drivers.virtualbox import driver as driver_module
from pytest_vmfest.errors import DriverError, MachineExistsError, MachineNotFoundError, MachineStateError
from pytest_vmfest.specs import HardwareModel, MachineSpec
from pytest_vmfest.waiting import Deadline

SMALLEST = HardwareModel("smallest", memory_mib=64, cpus=1)


def spec(image, name="m", **changes):
    """A small machine without a host-only interface, which not every host can have."""
    return MachineSpec(name, image, SMALLEST, network="nat", **changes)


def in_another_process(driver, sector, text, **kwargs):
    """Start a Python that has the driver, an image and `spec`, and does what ``text`` says."""
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from pytest_vmfest.drivers.base import DriverSettings
        from pytest_vmfest.drivers.virtualbox import VirtualBoxDriver
        from pytest_vmfest.specs import HardwareModel, ImageModel, MachineSpec

        driver = VirtualBoxDriver(DriverSettings(Path({str(driver.settings.home)!r})))
        image = ImageModel("sector", Path({str(sector.disk)!r}), "raw")
        spec = MachineSpec("m", image, HardwareModel("smallest", 64, 1), network="nat")
    """
    program = textwrap.dedent(program) + textwrap.dedent(text)
    return subprocess.Popen([sys.executable, "-c", program], text=True, **kwargs)


@pytest.fixture
def theirs(connection, tmp_path):
    """A machine that is none of ours, as a user may have it."""
    machine = connection.api.create_machine(
        connection.vbox, str(tmp_path / "theirs" / "theirs.vbox"), "theirs", ["/vmfest"], "Linux_64"
    )
    connection.vbox.register_machine(machine)
    yield machine
    from virtualbox.library import CleanupMode

    connection.wait(machine.delete_config(machine.unregister(CleanupMode.full)), Deadline(30), "removing it")


def test_others_machines_are_left_alone(driver, sector, theirs):
    """A machine that is not of this store is not listed and not destroyed, and its name is taken."""
    assert driver.machines() == []
    driver.destroy("theirs")
    with pytest.raises(MachineNotFoundError, match="no machine named 'theirs'"):
        driver.state("theirs")
    with pytest.raises(MachineExistsError, match="'theirs' exists already in VirtualBox"):
        driver.create(spec(sector, "theirs"))
    assert theirs.accessible


def test_a_machine_that_another_program_has_locked(driver, sector):
    """Whoever needs the lock waits for it, and at the deadline is told who has it."""
    driver.create(spec(sector))
    holder = in_another_process(
        driver,
        sector,
        """
        there = driver._opened()
        from pytest_vmfest.waiting import Deadline
        with there.machines.locked(there.machines.find("m"), Deadline(10), "be held", exclusive=True):
            print("locked", flush=True)
            sys.stdin.read()
        """,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(MachineStateError, match=r"'m' cannot be given ports: it has been locked by"):
            driver.start("m", Deadline(0.5))
    finally:
        holder.communicate("")


def test_settings_removed_behind_virtualboxs_back(driver, sector):
    """A machine whose files are gone is no stale registration for long: its name can be used again."""
    driver.create(spec(sector))
    folder = driver.settings.home / "virtualbox" / "machines" / "m"
    for file in folder.glob("m.vbox*"):
        file.unlink()
    driver.destroy("m")
    driver.create(spec(sector))
    assert driver.state("m") is MachineState.POWERED_OFF


@pytest.mark.parametrize(
    "moment",
    [
        "pytest_vmfest.drivers.virtualbox.hardware:configure",
        "pytest_vmfest.drivers.virtualbox.record:Record.write",
        "pytest_vmfest.drivers.virtualbox.media:Media.attach",
        "pytest_vmfest.drivers.virtualbox.hardware:attach",
    ],
    ids=lambda moment: moment.rpartition(":")[2],
)
def test_killed_while_creating(driver, sector, connection, moment):
    """Wherever a process is killed while it creates a machine, the name is free again after a destroy."""
    killed = in_another_process(
        driver,
        sector,
        f"""
        from importlib import import_module
        module, _, path = {moment!r}.partition(":")
        *owners, name = path.split(".")
        owner = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
        driver.create(spec)
        """,
    )
    assert killed.wait(60) == -signal.SIGKILL
    driver.destroy("m")
    driver.create(spec(sector))
    assert driver.state("m") is MachineState.POWERED_OFF


def test_tags_come_back_from_another_driver(driver, sector):
    """What is kept with a machine is there for whoever opens the store next."""
    driver.create(spec(sector, tags={"run": "r", "ü": "'\"&<"}))
    other = driver_module.VirtualBoxDriver(driver.settings)
    (info,) = other.machines()
    assert info.tags == {"run": "r", "ü": "'\"&<"}
    assert (info.image, info.memory_mib, info.cpus) == ("sector", 64, 1)


@pytest.mark.parametrize("kind", PropertyKind)
def test_properties(driver, sector, kind):
    """Guest properties and extra data can be set, read from elsewhere, and removed."""
    driver.create(spec(sector))
    assert driver.get_property("m", kind, "/vmfest/ours") == ""
    driver.set_property("m", kind, "/vmfest/ours", "ü 1")
    assert driver_module.VirtualBoxDriver(driver.settings).get_property("m", kind, "/vmfest/ours") == "ü 1"
    driver.set_property("m", kind, "/vmfest/ours", "")
    assert driver.get_property("m", kind, "/vmfest/ours") == ""


def test_a_store_by_another_way(driver, sector, tmp_path):
    """A store is the same by whatever path: through a link, or with a detour."""
    (tmp_path / "home").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    by_link = driver_module.VirtualBoxDriver(DriverSettings(tmp_path / "link"))
    detour = driver_module.VirtualBoxDriver(DriverSettings(tmp_path / "x" / ".." / "home"))
    by_link.create(spec(sector))
    assert [info.name for info in driver.machines()] == ["m"] == [info.name for info in detour.machines()]
    detour.destroy("m")
    assert by_link.machines() == []


@pytest.mark.skipif(not WHY_NOT, reason="machines can run here")
def test_a_start_without_the_kernel_module(driver, sector):
    """The error has VirtualBox's own words, and says what to do about it."""
    driver.create(spec(sector))
    with pytest.raises(DriverError, match="machine 'm' cannot be started") as caught:
        driver.start("m", Deadline(60))
    assert "modprobe vboxdrv" in caught.value.hint
    assert driver.state("m") is not MachineState.RUNNING
