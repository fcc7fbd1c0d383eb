"""Creating, finding and removing machines; images; private networks."""

import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pytest_vmfest.checks import Check
from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import (
    DriverError,
    ImageInvalidError,
    MachineExistsError,
    NotSupportedError,
)
from pytest_vmfest.specs import HardwareModel, PrivateNic


def test_a_new_machine_is_listed_with_all_that_was_asked_for(lab):
    """A listing tells name, state, size, image and tags, and where SSH answers once it runs."""
    before = time.time()
    lab.driver.create(lab.spec("one", hardware=HardwareModel("odd", 96, 2), tags={"run": "r1", "n": "ü"}))
    (info,) = lab.driver.machines()
    assert (info.name, info.state, info.image) == ("one", MachineState.POWERED_OFF, "sector")
    assert (info.memory_mib, info.cpus, dict(info.tags)) == (96, 2, {"run": "r1", "n": "ü"})
    assert before <= info.created <= time.time()
    assert info.endpoint is None
    lab.driver.start("one", lab.deadline)
    (info,) = lab.driver.machines()
    assert info.endpoint == lab.driver.endpoint("one", lab.deadline)


def test_machines_are_listed_oldest_first(lab):
    """The order of a listing is the order of creation."""
    for name in ("c", "a", "b"):
        lab.driver.create(lab.spec(name))
    assert [info.name for info in lab.driver.machines()] == ["c", "a", "b"]


def test_another_driver_sees_and_operates_the_same_machines(lab):
    """Machines belong to the store, not to the driver object that made them; tags survive."""
    lab.boot("m", tags={"group": "g"})
    other = lab.another_driver()
    try:
        (info,) = other.machines()
        assert (info.name, info.state, info.tags) == ("m", MachineState.RUNNING, {"group": "g"})
        assert other.endpoint("m", lab.deadline) == lab.driver.endpoint("m", lab.deadline)
        other.pause("m")
        assert lab.driver.state("m") is MachineState.PAUSED
        lab.driver.resume("m")
        assert other.state("m") is MachineState.RUNNING
        other.take_snapshot("m", "s", lab.deadline)
        assert lab.driver.snapshots("m") == ["s"]
        other.destroy("m")
    finally:
        other.close()
    assert lab.driver.machines() == []


def test_a_machine_outlives_the_process_that_started_it(lab):
    """A process that ends leaves its machine running; another one can do everything with it."""
    lab.start_elsewhere("orphan")
    assert lab.driver.state("orphan") is MachineState.RUNNING
    lab.await_console("orphan", "ready")
    lab.expect_line("orphan", "hello", "hello")
    lab.driver.stop("orphan", lab.deadline)
    assert lab.driver.state("orphan") is MachineState.POWERED_OFF
    lab.start("orphan")
    lab.driver.destroy("orphan")


def test_a_name_that_is_taken(lab):
    """The second of two machines of one name is refused, and the first is unharmed."""
    lab.boot("m", tags={"first": "yes"})
    with pytest.raises(MachineExistsError, match="machine named 'm' exists already"):
        lab.driver.create(lab.spec("m"))
    (info,) = lab.driver.machines()
    assert (info.state, info.tags) == (MachineState.RUNNING, {"first": "yes"})


def test_many_at_once_for_one_name(lab):
    """Of several who create one name at the same moment, exactly one succeeds."""

    def attempt(number: int) -> bool:
        try:
            lab.driver.create(lab.spec("m", tags={"by": str(number)}))
        except MachineExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    lab.start("m")


def test_several_machines_in_parallel(lab):
    """Calls on different machines may come from different threads, and each has its own disk."""
    names = ["a", "b", "c"]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lab.boot, names))
        assert len({lab.driver.endpoint(name, lab.deadline) for name in names}) == 3
        list(pool.map(lambda name: lab.keep_on_disk(name, f"disk of {name}"), names))
        list(pool.map(lab.driver.power_down, names))
        list(pool.map(lab.start, names))
        assert [lab.kept_on_disk(name) for name in names] == [f"disk of {name}" for name in names]
        list(pool.map(lab.driver.destroy, names))
    assert lab.driver.machines() == []


def test_the_image_is_never_written_to(lab):
    """Also an image that is read-only can be run, and what a guest writes is not in it."""
    lab.image.disk.chmod(0o400)
    before = lab.image.disk.read_bytes()
    lab.boot()
    lab.keep_on_disk("m", "mine")
    lab.driver.power_down("m")
    assert lab.image.disk.read_bytes() == before
    lab.boot("other")
    assert "mine" not in lab.driver.console("other")


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "folder"])
def test_an_image_that_is_no_disk(lab, damage):
    """Creating and checking end in one clear error that names the image; nothing is left."""
    disk = lab.home / f"{damage}.img"
    if damage == "folder":
        disk.mkdir()
    elif damage != "missing":
        disk.write_bytes(b"" if damage == "empty" else b"this is no disk\n")
    image = replace(lab.image, name="broken", disk=disk)
    with pytest.raises(ImageInvalidError, match=f"'broken'.*{damage}.img"):
        lab.driver.check_image(image)
    with pytest.raises(ImageInvalidError, match=f"'broken'.*{damage}.img"):
        lab.driver.create(lab.spec(image=image))
    assert lab.left_over() == []


def test_a_sound_image(lab):
    """Checking an image that can be run raises nothing."""
    lab.driver.check_image(lab.image)


@pytest.mark.parametrize("what", ["permanent", "bridged"])
def test_what_the_driver_cannot_do(lab, what):
    """What is not supported is refused before anything is made."""
    if what not in lab.refused:
        pytest.skip(f"{lab.driver_name} can")
    changes = {"permanent": {"permanent": True}, "bridged": {"network": "bridged"}}[what]
    with pytest.raises(NotSupportedError, match=what[:4]):
        lab.driver.create(lab.spec(**changes))
    assert lab.left_over() == []


def test_private_networks(lab):
    """A machine joins a network that was created before; removing and creating can be repeated."""
    nic = PrivateNic("net-a", "52:54:00:aa:bb:cc", "10.0.0.2")
    lab.driver.create(lab.spec(nics=(nic,)))
    with pytest.raises(DriverError, match="no private network named 'net-a'"):
        lab.driver.start("m", lab.deadline)
    assert lab.driver.state("m") is MachineState.POWERED_OFF
    lab.driver.create_network("net-a")
    lab.driver.create_network("net-a")
    lab.start("m")
    lab.type("m", "half ")
    lab.driver.take_snapshot("m", "s", lab.deadline)
    lab.driver.revert("m", "s", lab.deadline)
    lab.driver.save_state("m", lab.deadline)
    lab.driver.start("m", lab.deadline)
    lab.expect_line("m", "half a line", "a line")
    lab.driver.destroy("m")
    lab.driver.remove_network("net-a")
    lab.driver.remove_network("net-a")
    assert lab.left_over() == []


def test_the_driver_tells_about_itself(lab):
    """Describing never fails and is one line; checks have names, and opening twice is fine."""
    first = lab.driver.describe()
    lab.driver.open()
    lab.driver.open()
    second = lab.driver.describe()
    assert first
    assert second
    assert "\n" not in first + second
    checks = lab.driver.check()
    assert checks
    assert all(isinstance(check, Check) and check.ok for check in checks)


def test_nobody_else_can_look_into_the_machines(qemu_lab):
    """Folders of machines are closed to other users of the host."""
    qemu_lab.boot()
    for folder in (qemu_lab.home / "machines", qemu_lab.home / "machines" / "m"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
