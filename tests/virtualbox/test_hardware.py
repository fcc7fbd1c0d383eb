"""The hardware map on a real VirtualBox; no machine is started."""

import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from registry import registered

from pytest_vmfest import Dvd, ExistingDisk, HardwareModel, NewDisk, SharedFolder, StorageController
from pytest_vmfest.drivers.virtualbox import hardware
from pytest_vmfest.drivers.virtualbox.media import Media
from pytest_vmfest.errors import ConfigurationError, DriverError
from pytest_vmfest.specs import ImageModel, MachineSpec
from pytest_vmfest.waiting import Deadline, wait_for


def spec_of(tmp_path, **said):
    """A machine's spec with a hardware model that says this."""
    image = ImageModel("tiny", tmp_path / "disk.vdi", "vdi")
    return MachineSpec("hardware-m", image, HardwareModel("own", 256, 2, **said), network="nat")


@contextmanager
def machine(connection, spec, folder, *, check=True):
    """A registered machine without its image's disk, locked and with all that its hardware model says."""
    from virtualbox.library import LockType

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
        Media(connection, folder.parents[2]).unregister(com, folder)
    assert not check or registered(connection) == before


@pytest.fixture
def folder(tmp_path):
    """Where a machine's files are in a store of the test's own."""
    return tmp_path / "home" / "virtualbox" / "machines" / "m"


@pytest.fixture
def disk(connection, tmp_path):
    """A disk image of the user's own, which VirtualBox does not know."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    path = tmp_path / "own.vdi"
    medium = connection.vbox.create_medium("VDI", str(path), AccessMode.read_write, DeviceType.hard_disk)
    connection.wait(medium.create_base_storage(1 << 20, [MediumVariant.standard]), Deadline(20), "no disk")
    medium.close()
    return path


def test_settings(connection, tmp_path, folder):
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
    with machine(connection, spec, folder) as found:
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


def test_controllers_and_devices(connection, tmp_path, folder, disk):
    """Every kind of controller and device at once; the user's files stay when the machine is destroyed."""
    iso = tmp_path / "a.iso"
    iso.write_bytes(bytes(1 << 16))
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
    assert not list(folder.parent.rglob("*.vdi"))


def test_shared_folders(connection, tmp_path, folder):
    """A folder can be read-only."""
    folders = [SharedFolder("rw", tmp_path), SharedFolder("ro", tmp_path, read_only=True)]
    with machine(connection, spec_of(tmp_path, shared_folders=folders), folder) as found:
        assert {str(one.name): bool(one.writable) for one in found.shared_folders} == {
            "rw": True,
            "ro": False,
        }
        assert {str(one.host_path) for one in found.shared_folders} == {str(tmp_path)}


@pytest.mark.parametrize("device", [ExistingDisk, Dvd])
def test_a_file_that_is_not_there(connection, tmp_path, folder, device):
    """The error names the controller and the file; nothing stays registered."""
    missing = [StorageController("ide", devices=[NewDisk(1), device(tmp_path / "gone")])]
    with pytest.raises(ConfigurationError, match=r"controller 'ide', device 1: there is no file .*gone"):
        with machine(connection, spec_of(tmp_path, controllers=missing), folder):
            pass


def test_a_file_that_is_no_disk(connection, tmp_path, folder):
    """VirtualBox's own words are kept."""
    (tmp_path / "text.vdi").write_text("no disk")
    wrong = [StorageController("ide", devices=[ExistingDisk(tmp_path / "text.vdi")])]
    with pytest.raises(DriverError, match=r"controller 'ide', device 0: .*text\.vdi"):
        with machine(connection, spec_of(tmp_path, controllers=wrong), folder):
            pass


def test_a_shared_folder_that_is_not_there(connection, tmp_path, folder):
    """It is refused when the machine is made, not found out in the guest."""
    gone = [SharedFolder("src", tmp_path / "gone")]
    with pytest.raises(ConfigurationError, match=r"shared folder 'src': there is no folder .*gone"):
        with machine(connection, spec_of(tmp_path, shared_folders=gone), folder):
            pass


def test_an_unknown_guest_system(connection, tmp_path):
    """The error lists those of a like name."""
    with pytest.raises(ConfigurationError, match=r"(?s)'Debiän_64' is not known.*Debian_64"):
        hardware.os_type(connection, spec_of(tmp_path, os_type="Debiän_64"))


def test_guest_systems_without_a_word_about_them(connection, tmp_path):
    """An image that says nothing is some Linux."""
    assert hardware.os_type(connection, spec_of(tmp_path)) == "Linux_64"


def media_of(connection):
    """All media that VirtualBox knows."""
    return registered(connection)["media"]


def test_a_failure_after_other_devices(connection, tmp_path, folder, disk):
    """What was attached before it goes with the machine, and the machine can be made again."""
    (tmp_path / "a.iso").write_bytes(bytes(1 << 16))
    before = registered(connection)
    wrong = [
        StorageController("ide", devices=[Dvd(tmp_path / "a.iso"), ExistingDisk(disk)]),
        StorageController("scsi", devices=[NewDisk(8), ExistingDisk(tmp_path / "gone")]),
    ]
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="there is no file"):
            with machine(connection, spec_of(tmp_path, controllers=wrong), folder):
                pass
        assert registered(connection) == before
    assert not list(folder.rglob("*.vdi"))
    assert disk.exists()


def test_media_that_the_user_had_opened(connection, tmp_path, folder, disk):
    """They stay in VirtualBox's list when the machine goes; others go with the last that was given them."""
    from virtualbox.library import AccessMode, DeviceType

    iso, other = tmp_path / "a.iso", tmp_path / "b.iso"
    for path in (iso, other):
        path.write_bytes(bytes(1 << 16))
    opened = [
        connection.vbox.open_medium(str(path), kind, access, False)
        for path, kind, access in (
            (iso, DeviceType.dvd, AccessMode.read_only),
            (disk, DeviceType.hard_disk, AccessMode.read_write),
        )
    ]
    try:
        before = media_of(connection)
        devices = [Dvd(iso), ExistingDisk(disk), Dvd(other)]
        said = spec_of(tmp_path, controllers=[StorageController("ide", devices=devices)])
        second = spec_of(tmp_path, controllers=[StorageController("ide", devices=[Dvd(iso), Dvd(other)])])
        second = replace(second, name="hardware-n")
        with ExitStack() as first_stack, ExitStack() as second_stack:
            first_stack.enter_context(machine(connection, said, folder, check=False))
            second_stack.enter_context(machine(connection, second, folder.with_name("n"), check=False))
            first_stack.close()
            assert media_of(connection) == sorted([*before, str(other)])
        assert media_of(connection) == before
    finally:
        for medium in opened:
            medium.close()


def test_a_disk_that_stays_keeps_what_was_written_after_snapshots(connection, tmp_path, folder, disk):
    """Snapshots put differencing images above it; what is in them is merged into it."""
    from virtualbox.library import AccessMode, DeviceType

    said = spec_of(tmp_path, controllers=[StorageController("ide", devices=[NewDisk(1), ExistingDisk(disk)])])
    with machine(connection, said, folder) as found:
        for number in range(3):
            opened = found.get_medium("ide", 0, 1)._i.openForIO(True, "")
            assert opened.write(number * 512, bytes([number + 1]) * 512) == 512
            opened.close()
            if number < 2:
                progress, _ = found.take_snapshot(f"s{number}", "", True)
                connection.wait(progress, Deadline(60), "no snapshot")
    medium = connection.vbox.open_medium(str(disk), DeviceType.hard_disk, AccessMode.read_write, False)
    opened = medium._i.openForIO(False, "")
    content = bytes(opened.read(0, 1536))
    opened.close()
    medium.close()
    assert content == b"\1" * 512 + b"\2" * 512 + b"\3" * 512


KILLED = """
import os, sys
from pathlib import Path
from pytest_vmfest import HardwareModel, NewDisk, StorageController
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import hardware
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.specs import ImageModel, MachineSpec
from virtualbox import library

folder, call, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
controllers = [StorageController("scsi", devices=[NewDisk(1), NewDisk(1)])]
model = HardwareModel("own", 256, 2, controllers=controllers)
spec = MachineSpec("hardware-m", ImageModel("tiny", folder, "vdi"), model, network="nat")
connection = connect(DriverSettings(folder))
session = connection.session()
connection.vbox.find_machine(spec.name).lock_machine(session, library.LockType.write)
machine = session.machine
original = getattr(library.IMachine, call)
def counting(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), 9)
    left -= 1
    return original(*arguments)
setattr(library.IMachine, call, counting)
hardware.attach(connection, machine, spec, folder)
"""


@pytest.mark.parametrize("call", ["attach_device", "save_settings"])
@pytest.mark.parametrize("count", [0, 1])
def test_killed_between_devices(connection, tmp_path, folder, call, count):
    """The machine can be removed and made again, and nothing of it stays but what VirtualBox clings to."""
    from virtualbox.library import SessionState

    before = media_of(connection)
    two = spec_of(tmp_path, controllers=[StorageController("scsi", devices=[NewDisk(1), NewDisk(1)])])
    com = connection.api.create_machine(
        connection.vbox, str(folder / "m.vbox"), two.name, ["/vmfest"], "Linux_64"
    )
    hardware.configure(connection, com, two)
    connection.vbox.register_machine(com)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), call, str(count)], check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: com.session_state == SessionState.unlocked, Deadline(30), what="the lock's end")
    Media(connection, folder.parents[2]).unregister(com, folder)
    # Its service forgets only at its end what was attached and never saved.
    stuck = [str(folder / f"scsi-{count}.vdi")] if call == "save_settings" else []
    assert media_of(connection) == sorted([*before, *stuck])
    with machine(connection, two, folder):
        pass
