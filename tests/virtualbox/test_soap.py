"""VirtualBox through its web service gives the same answers as VirtualBox here. No machine is started.

A web service is started beside the service that the local connection uses, so both see one registry.
"""

import logging
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import psutil
import pytest

pytest.importorskip("zeep", reason="the extra 'remote' is not installed")

from pytest_vmfest.devices import NatRule
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import diagnosis, nat, networks, trouble
from pytest_vmfest.drivers.virtualbox.connection import connect, find_installation
from pytest_vmfest.errors import ConfigurationError, DriverError, DriverUnavailableError
from pytest_vmfest.specs import HardwareModel, ImageModel, MachineSpec
from pytest_vmfest.waiting import Deadline, wait_for


@contextmanager
def web_service(connection, authentication):
    """The URL of a web service that checks passwords with a library of VirtualBox."""
    program = find_installation().folder / "vboxwebsrv"
    if not program.exists():
        pytest.skip(f"there is no {program}")
    command = [program, "--host", "127.0.0.1", "--port", "0"]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = port_of(service)
        # A service loads it at its first logon.
        connection.vbox.system_properties.web_service_auth_library = authentication
        yield f"http://127.0.0.1:{port}/"
    finally:
        # Asked to end, it waits half a minute for clients that are still connected.
        service.kill()
        service.wait()


@pytest.fixture(scope="module")
def url(connection):
    """A web service that lets everybody in, beside the service of the local connection."""
    with web_service(connection, "null") as url:
        yield url


def port_of(service):
    """The port that the system has given to a process."""

    def listening():
        assert service.poll() is None
        sockets = psutil.Process(service.pid).net_connections("tcp")
        return next((s.laddr.port for s in sockets if s.status == psutil.CONN_LISTEN), None)

    return wait_for(listening, Deadline(20), what="vboxwebsrv's port", interval_s=0.05)


@pytest.fixture(scope="module")
def remote(url, tmp_path_factory):
    """A connection through the web service."""
    return connect(DriverSettings(tmp_path_factory.mktemp("store"), url=url, user="me", password="hush"))


@pytest.fixture
def both(connection, remote, tmp_path):
    """Run a story with either connection: both must tell the same."""

    def check(story):
        told = []
        for one in (connection, remote):
            folder = tmp_path / "machine"
            folder.mkdir()
            told.append(list(story(one, folder)))
            shutil.rmtree(folder)
        assert told[1] == told[0]
        return told[1]

    return check


def new_machine(connection, folder, name="soap"):
    """A registered machine."""
    machine = connection.api.create_machine(
        connection.vbox, str(folder / f"{name}.vbox"), name, ["/vmfest"], "Linux_64"
    )
    connection.vbox.register_machine(machine)
    return machine


def locked(connection, machine):
    """A session that holds the machine."""
    from virtualbox.library import LockType

    session = connection.session()
    machine.lock_machine(session, LockType.write)
    return session


def remove(connection, machine):
    """Unregister the machine and delete its files and disks."""
    from virtualbox.library import CleanupMode, IProgress

    media = machine.unregister(CleanupMode.full)
    progress = IProgress(machine._i.deleteConfig([medium._i for medium in media]))
    connection.wait(progress, Deadline(20), "the machine's files cannot be deleted")


def test_version_and_enumerations_are_those_of_the_host(connection, remote):
    """Version, API and every number of every enumeration."""
    assert remote.version == connection.version
    assert type(remote.api) is type(connection.api)
    names = remote.constants._values
    assert len(names) > 100
    assert {n: remote.constants.all_values(n) for n in names} == {
        n: connection.constants.all_values(n) for n in names
    }


def test_a_machine_is_made_found_changed_and_removed(both):
    """Texts, numbers, enumerations, lists, null, objects, methods with and without results."""

    def story(connection, folder):
        vbox, constants = connection.vbox, connection.constants
        machine = new_machine(connection, folder)
        yield [str(one.name) for one in vbox.machines if one.name == machine.name]
        yield [str(one.name) for one in vbox.get_machines_by_groups(["/vmfest"])]
        machine = vbox.find_machine("soap")
        raw = machine._i
        yield raw.state == constants.MachineState_PoweredOff, raw.sessionState, raw.CPUCount
        yield raw.description, raw.getIcon(), list(raw.getGroups()), machine.accessible
        yield trouble.is_null(machine.current_snapshot), raw.currentSnapshot, raw.getGuestProperty("none")
        session = locked(connection, machine)
        there = session.machine
        there.memory_size, there.cpu_count = 256, 2
        there.description = "ä <&> '\n\" text"
        there.set_extra_data("vmfest/machine", '{"tags": {"a": "ü"}}')
        connection.api.board(there).IOAPICEnabled = True
        connection.api.clock(there).RTCUseUTC = True
        there.save_settings()
        session.unlock_machine()
        yield machine.memory_size, machine.cpu_count, machine.description
        yield list(raw.getExtraDataKeys()), machine.get_extra_data("vmfest/machine")
        yield connection.api.board(machine).IOAPICEnabled, connection.api.clock(machine).RTCUseUTC
        yield connection.api.graphics(machine).VRAMSize, connection.api.firmware(machine).firmwareType
        remove(connection, machine)
        with pytest.raises(Exception, match="soap") as caught:
            vbox.find_machine("soap")
        yield trouble.code_of(caught.value), trouble.text_of(caught.value)
        yield sorted(one.name for one in folder.iterdir())

    told = both(story)
    assert trouble.OBJECT_NOT_FOUND in [part[0] for part in told if isinstance(part, tuple)]


def test_network_adapters_and_nat_rules(both):
    """Objects of objects; enumerations as arguments; parts of a rule."""
    from virtualbox.library import NATProtocol, NetworkAttachmentType

    def story(connection, folder):
        machine = new_machine(connection, folder)
        session = locked(connection, machine)
        adapter = session.machine.get_network_adapter(1)
        adapter.enabled = True
        adapter.attachment_type = NetworkAttachmentType.nat
        adapter.mac_address = "0800270a0b0c"
        adapter.nat_engine.add_redirect("ssh", NATProtocol.tcp, "127.0.0.1", 2222, "", 22)
        session.machine.save_settings()
        session.unlock_machine()
        seen = machine.get_network_adapter(1)
        yield seen.enabled, str(seen.attachment_type), seen.mac_address, int(seen.slot)
        yield list(seen.nat_engine.redirects), seen.host_only_interface, seen._i.promiscModePolicy
        remove(connection, machine)

    both(story)


def test_media_are_made_attached_opened_and_closed(both):
    """Progress objects, lists of enumerations, structs with objects and null in them, sizes in bytes."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant, StorageBus

    def story(connection, folder):
        vbox, file = connection.vbox, folder / "disk.vdi"
        medium = vbox.create_medium("VDI", str(file), AccessMode.read_write, DeviceType.hard_disk)
        yield medium._i.state, trouble.is_null(medium.parent)
        progress = medium.create_base_storage(8 << 20, [MediumVariant.standard])
        connection.wait(progress, Deadline(20), "a disk")
        yield int(medium._i.refreshState()), medium.logical_size, medium.format_p, medium.location
        machine = new_machine(connection, folder)
        session = locked(connection, machine)
        session.machine.add_storage_controller("SATA", StorageBus.sata)
        session.machine.attach_device("SATA", 0, 0, DeviceType.hard_disk, medium)
        session.machine.save_settings()
        session.unlock_machine()
        for one in machine.medium_attachments:
            yield one.port, one.device, one._i.type, one.medium.location, one._i.bandwidthGroup
        yield [int(str(one) == str(machine.id_p)) for one in medium.machine_ids]
        remove(connection, machine)
        yield file.exists()

    both(story)


def test_a_base_disk_that_the_other_side_does_not_have(remote):
    """The error says that both must see the same files."""
    from virtualbox.library import AccessMode, DeviceType

    with pytest.raises(DriverError, match="under the same path as this host"):
        with trouble.translated("a disk cannot be opened"):
            remote.vbox.open_medium("/nowhere/disk.vdi", DeviceType.hard_disk, AccessMode.read_only, False)


def test_snapshots_are_taken_found_and_deleted(both):
    """Several results come as a tuple, the returned one first; progress is waited for."""

    def story(connection, folder):
        machine = new_machine(connection, folder)
        session = locked(connection, machine)
        progress, key = session.machine.take_snapshot("one", "as it was", True)
        connection.wait(progress, Deadline(20), "a snapshot")
        yield re.sub(r"[0-9a-f]", "x", key), machine.snapshot_count
        snapshot = machine.find_snapshot("one")
        yield snapshot.name, snapshot.description, trouble.is_null(snapshot.parent), snapshot.online
        progress = session.machine.delete_snapshot(key)
        connection.wait(progress, Deadline(20), "no snapshot")
        yield machine.snapshot_count
        session.unlock_machine()
        remove(connection, machine)

    both(story)


def test_operations_that_fail_say_why(both):
    """The text of a failed progress, and refusals of settings."""

    def story(connection, folder):
        machine = new_machine(connection, folder)
        session = locked(connection, machine)
        with pytest.raises(DriverError, match="RAM") as caught:
            with trouble.translated("memory cannot be set"):
                session.machine.memory_size = 0
        yield caught.value.message
        session.unlock_machine()
        with pytest.raises(DriverError) as caught:
            with trouble.translated("a snapshot cannot be found"):
                machine.find_snapshot("none")
        yield caught.value.message
        remove(connection, machine)

    both(story)


def test_wrong_names_and_arguments(remote):
    """As XPCOM: no attribute, no setting of unknown ones, no call with too few arguments."""
    raw = remote.vbox._i
    with pytest.raises(AttributeError, match="nonsense"):
        _ = raw.nonsense
    with pytest.raises(AttributeError, match="nonsense"):
        raw.nonsense = 1
    with pytest.raises(TypeError, match=r"findMachine\(nameOrId\)"):
        raw.findMachine()
    with pytest.raises(ValueError, match="LockType has no value 99"):
        raw._manager.constants.label("LockType", 99)


def test_objects_are_given_back_when_nobody_holds_them(remote):
    """The service holds few objects after many calls, and still those that are in use."""
    raw = remote.vbox._i
    held = raw.systemProperties
    for _ in range(300):
        assert raw.systemProperties == held
        _ = raw.host
    manager = raw._manager
    assert sum(manager._living.values()) < 100
    assert held.maxGuestRAM > 0


def test_a_forgotten_session_is_renewed(url, tmp_path):
    """After a pause that was too long for the web service, the next use logs on anew."""
    connection = connect(DriverSettings(tmp_path, url=url))
    properties = connection.vbox.system_properties
    connection._manager.deinit()  # what the service does by itself after some minutes
    with pytest.raises(DriverUnavailableError, match="forgotten"):
        with trouble.translated("memory"):
            _ = properties.max_guest_ram
    assert connection.vbox.system_properties.max_guest_ram > 0


def test_any_thread_may_call(remote):
    """Calls from several threads at once get their own answers."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(number):
        key = f"vmfest/thread-{number}"
        for turn in range(10):
            remote.vbox.set_extra_data(key, str(turn))
            assert remote.vbox.get_extra_data(key) == str(turn)
        remote.vbox.set_extra_data(key, "")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


def test_doctor_asks_the_web_service(url, tmp_path):
    """Version and networks of its host are found; nothing is said of kernel modules, which are over there."""
    checks = {check.name: check for check in diagnosis.check(DriverSettings(tmp_path, url=url))}
    assert set(checks) == {
        "qemu-img",
        "VirtualBox web service",
        "VirtualBox host-only interfaces",
        "VirtualBox bridged interfaces",
    }
    assert all(check.ok for check in checks.values())


def test_nat_on_this_host(remote, url, tmp_path):
    """A web service that is on this host after all gives its ports."""
    hardware = HardwareModel("usual", 256, 1, nat_rules=(NatRule("web", 80),))
    spec = MachineSpec("soap", ImageModel("x", tmp_path / "x.img", "raw"), hardware, "nat")
    machine = new_machine(remote, tmp_path)
    session = locked(remote, machine)
    networks.configure(remote, DriverSettings(tmp_path, url=url), session.machine, spec)
    assert sorted(nat.rules(session.machine, 0)) == ["vmfest-ssh", "vmfest-web"]
    session.unlock_machine()
    remove(remote, machine)


def test_passwords_are_checked_and_never_shown(connection, tmp_path, caplog):
    """A right password is let in; a wrong one is refused; neither is in logs, errors or representations."""
    connection.vbox.set_extra_data("VBoxAuthSimple/users/me", sha256(b"s3cret-right").hexdigest())
    with web_service(connection, "VBoxAuthSimple") as url, caplog.at_level(logging.DEBUG):
        settings = DriverSettings(tmp_path, url=url, user="me", password="s3cret-right")
        assert connect(settings).version == connection.version
        with pytest.raises(ConfigurationError, match="refuses the user 'me'") as caught:
            connect(replace(settings, password="s3cret-wrong"))
    frames = [repr(entry.frame.f_locals) for entry in caught.traceback[1:]]
    assert len(frames) > 2
    assert caught.value.__suppress_context__  # zeep's own frames have it
    assert "s3cret" not in caplog.text + repr(settings) + str(caught.value) + "".join(frames)
