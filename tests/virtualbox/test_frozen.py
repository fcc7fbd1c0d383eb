"""Machines that are to go on from a frozen one, as VirtualBox has them before they are started."""

import json
from dataclasses import replace

import pytest
from registry import registered

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.disk_images import ImageTool, find_image_program
from pytest_vmfest.drivers.virtualbox import frozen, nat
from pytest_vmfest.errors import StoreError, ThawError
from pytest_vmfest.specs import HardwareModel, MachineSpec, PrivateNic

NIC = PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1")


@pytest.fixture
def source(tmp_path, sector):
    """The folder of a frozen machine whose state nobody can go on from."""
    folder = tmp_path / "frozen"
    folder.mkdir()
    ImageTool(find_image_program(), tmp_path).convert(sector, folder / frozen.DISK, "vdi")
    (folder / frozen.STATE).write_bytes(b"not really")
    (folder / "console.log").write_text("ready\n")
    (folder / "frozen.json").write_text(json.dumps({"macs": ["08:00:27:00:00:01"]}))
    return folder


def spec(image, source, network="nat", nics=()):
    hardware = HardwareModel("smallest", 64, 1)
    return MachineSpec("m", image, hardware, network, nics=nics, thaw_from=source)


def test_it_is_saved_on_a_disk_of_its_own(driver, sector, source):
    """It has the frozen one's state and console, and its disk stands on the frozen one's."""
    driver.create(spec(sector, source))
    assert driver.state("m") is MachineState.SAVED
    assert driver.console("m") == "ready\n"
    [info] = driver.machines()
    assert info.image == sector.name


def test_nothing_of_the_frozen_one_is_lost(driver, connection, sector, source):
    """Whatever becomes of the machine."""
    before = {path: path.read_bytes() for path in source.iterdir()}
    known = registered(connection)
    for end in (driver.destroy, driver.power_down):
        driver.create(spec(sector, source))
        end("m")
        assert {path: path.read_bytes() for path in source.iterdir()} == before
        driver.destroy("m")
        assert registered(connection) == known


def test_the_way_in(driver, connection, sector, source):
    """No card but the one behind NAT is plugged in, and that has a way to the guest's SSH server."""
    driver.create_network("net")
    driver.create(spec(sector, source, nics=(NIC,)))
    com = connection.vbox.find_machine("m")
    kinds = [str(com.get_network_adapter(slot).attachment_type) for slot in range(2)]
    assert kinds == ["NAT", "Null"]
    assert nat.ssh_endpoint(com, 0).host == "127.0.0.1"
    assert frozen.mac_of(com, 1) == NIC.mac


def test_a_folder_for_it_that_cannot_be_made(driver, connection, sector, tmp_path):
    """It is named, and nothing is left of the machine."""
    (tmp_path / "file").touch()
    known = registered(connection)
    target = tmp_path / "file" / "frozen"
    with pytest.raises(StoreError, match=str(target)):
        driver.create(replace(spec(sector, None), freeze_to=target))
    assert registered(connection) == known
    assert driver.machines() == []


def test_the_room_for_it(driver, sector):
    """It takes its memory and copies of what its disk holds: frozen, to stand on, and a base of its own."""
    with sector.disk.open("r+b") as disk:
        for at in range(5):
            disk.seek(at * (8 << 20))
            disk.write(b"\x01" * 4096)
        disk.truncate(1 << 30)
    before = driver.frozen_mib(spec(sector, None)) - 64
    driver.create(MachineSpec("m", sector, HardwareModel("smallest", 64, 1), "nat"))
    after = driver.frozen_mib(spec(sector, None)) - 64
    assert 2 * 5 <= after <= 2 * 12
    assert before == pytest.approx(after * 3 / 2, abs=2)


def test_the_room_for_one_whose_disk_is_no_disk(driver, sector):
    """That is told by who makes the machine."""
    assert driver.frozen_mib(spec(replace(sector, format="qcow2"), None)) == 64


@pytest.mark.parametrize("lost", [frozen.STATE, frozen.DISK, "console.log", "frozen.json"])
def test_one_that_is_not_whole(driver, connection, sector, source, lost):
    """It is told, and nothing is left of the machine."""
    (source / lost).unlink()
    known = registered(connection)
    with pytest.raises(ThawError, match=str(source)):
        driver.create(spec(sector, source))
    assert registered(connection) == known
    assert driver.machines() == []
