"""The hardware map on a real VirtualBox; no machine is started."""

from contextlib import contextmanager

import pytest
from registry import registered

from pytest_vmfest import Dvd, ExistingDisk, HardwareModel, NewDisk, SharedFolder, StorageController
from pytest_vmfest.drivers.virtualbox import hardware
from pytest_vmfest.errors import ConfigurationError, DriverError
from pytest_vmfest.specs import ImageModel, MachineSpec
from pytest_vmfest.waiting import Deadline


def spec_of(tmp_path, **said):
    """A machine's spec with a hardware model that says this."""
    image = ImageModel("tiny", tmp_path / "disk.vdi", "vdi")
    return MachineSpec("hardware-m", image, HardwareModel("own", 256, 2, **said), network="nat")


@contextmanager
def machine(connection, spec, folder):
    """A registered machine without its image's disk, locked and with all that its hardware model says."""
    from virtualbox.library import CleanupMode, LockType

    before = registered(connection)
    kind = hardware.os_type(connection, spec)
    com = connection.api.create_machine(connection.vbox, str(folder / "m.vbox"), spec.name, ["/vmfest"], kind)
    hardware.configure(connection, com, spec)
    connection.vbox.register_machine(com)
    session = connection.session()
    com.lock_machine(session, LockType.write)
    try:
        try:
            hardware.attach(connection, session.machine, spec, folder)
            session.machine.save_settings()
            yield session.machine
        finally:
            session.unlock_machine()
    finally:
        own, others = hardware.own_media(com.unregister(CleanupMode.full), folder)
        connection.wait(com.delete_config(own), Deadline(20), "the machine's files cannot be removed")
        for medium in others:
            medium.close()
    assert registered(connection) == before


@pytest.fixture
def disk(connection, tmp_path):
    """A disk image of the user's own, which VirtualBox does not know."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    path = tmp_path / "own.vdi"
    medium = connection.vbox.create_medium("VDI", str(path), AccessMode.read_write, DeviceType.hard_disk)
    connection.wait(medium.create_base_storage(1 << 20, [MediumVariant.standard]), Deadline(20), "no disk")
    medium.close()
    return path


def test_settings(connection, tmp_path):
    """Sizes, screen, firmware, boot order and the rest are VirtualBox's settings afterwards."""
    from virtualbox.library import DeviceType

    spec = spec_of(
        tmp_path,
        vram_mib=32,
        firmware="efi",
        boot_order=["dvd", "disk"],
        os_type="Debian_64",
        description="ü",
    )
    with machine(connection, spec, tmp_path / "m") as found:
        api, constants = connection.api, connection.constants
        assert (found.memory_size, found.cpu_count, found.os_type_id) == (256, 2, "Debian_64")
        assert found.description == "ü"
        assert api.graphics(found).VRAMSize == 32
        assert api.firmware(found).firmwareType == constants.FirmwareType_EFI
        assert api.board(found).IOAPICEnabled
        assert api.clock(found).RTCUseUTC
        assert api.clock(found).chipsetType == constants.ChipsetType_PIIX3
        assert not api.audio(found).enabled
        assert [found.get_boot_order(position) for position in (1, 2, 3, 4)] == [
            DeviceType.dvd,
            DeviceType.hard_disk,
            DeviceType.null,
            DeviceType.null,
        ]


def test_controllers_and_devices(connection, tmp_path, disk):
    """Every kind of controller and device at once; the user's files stay when the machine is destroyed."""
    iso = tmp_path / "a.iso"
    iso.write_bytes(bytes(1 << 16))
    folder = tmp_path / "m"
    spec = spec_of(
        tmp_path,
        controllers=[
            StorageController("ide", devices=[Dvd(), NewDisk(1), Dvd(iso)]),
            StorageController("sata", "more", [NewDisk(2), ExistingDisk(disk)]),
            StorageController("scsi", devices=[NewDisk(1)]),
            StorageController("sas", devices=[NewDisk(1)]),
        ],
    )
    with machine(connection, spec, folder) as found:
        places = {
            (str(one.controller), one.port, one.device): str(one.medium.location) if one.medium._i else ""
            for one in found.medium_attachments
        }
        assert places == {
            ("ide", 0, 0): "",
            ("ide", 0, 1): str(folder / "ide-1.vdi"),
            ("ide", 1, 0): str(iso),
            ("more", 0, 0): str(folder / "more-0.vdi"),
            ("more", 1, 0): str(disk),
            ("scsi", 0, 0): str(folder / "scsi-0.vdi"),
            ("sas", 0, 0): str(folder / "sas-0.vdi"),
        }
        assert found.get_storage_controller_by_name(hardware.DISK_CONTROLLER).port_count == 1
    assert iso.exists()
    assert disk.exists()
    assert not list(tmp_path.rglob("m/*.vdi"))


def test_shared_folders(connection, tmp_path):
    """A folder can be read-only."""
    folders = [SharedFolder("rw", tmp_path), SharedFolder("ro", tmp_path, read_only=True)]
    with machine(connection, spec_of(tmp_path, shared_folders=folders), tmp_path / "m") as found:
        assert {str(one.name): bool(one.writable) for one in found.shared_folders} == {
            "rw": True,
            "ro": False,
        }
        assert {str(one.host_path) for one in found.shared_folders} == {str(tmp_path)}


@pytest.mark.parametrize("device", [ExistingDisk, Dvd])
def test_a_file_that_is_not_there(connection, tmp_path, device):
    """The error names the controller and the file; nothing stays registered."""
    missing = [StorageController("ide", devices=[NewDisk(1), device(tmp_path / "gone")])]
    with pytest.raises(ConfigurationError, match=r"controller 'ide', device 1: there is no file .*gone"):
        with machine(connection, spec_of(tmp_path, controllers=missing), tmp_path / "m"):
            pass


def test_a_file_that_is_no_disk(connection, tmp_path):
    """VirtualBox's own words are kept."""
    (tmp_path / "text.vdi").write_text("no disk")
    wrong = [StorageController("ide", devices=[ExistingDisk(tmp_path / "text.vdi")])]
    with pytest.raises(DriverError, match=r"controller 'ide', device 0: .*text\.vdi"):
        with machine(connection, spec_of(tmp_path, controllers=wrong), tmp_path / "m"):
            pass


def test_a_shared_folder_that_is_not_there(connection, tmp_path):
    """It is refused when the machine is made, not found out in the guest."""
    gone = [SharedFolder("src", tmp_path / "gone")]
    with pytest.raises(ConfigurationError, match=r"shared folder 'src': there is no folder .*gone"):
        with machine(connection, spec_of(tmp_path, shared_folders=gone), tmp_path / "m"):
            pass


def test_an_unknown_guest_system(connection, tmp_path):
    """The error lists those of a like name."""
    with pytest.raises(ConfigurationError, match=r"(?s)'Debiän_64' is not known.*Debian_64"):
        hardware.os_type(connection, spec_of(tmp_path, os_type="Debiän_64"))


def test_guest_systems_without_a_word_about_them(connection, tmp_path):
    """An image that says nothing is some Linux."""
    assert hardware.os_type(connection, spec_of(tmp_path)) == "Linux_64"
