"""The record that a machine has on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vmfest.devices import NatRule
from pytest_vmfest.drivers.qemu.process import Process
from pytest_vmfest.drivers.qemu.record import Record, Store, log_tail
from pytest_vmfest.errors import DriverError, MachineExistsError, MachineNotFoundError, StoreError
from pytest_vmfest.specs import DirectBoot, HardwareModel, ImageModel, Login, MachineSpec, PrivateNic

SPEC = MachineSpec(
    "db-0",
    ImageModel(
        "tiny",
        Path("/store/tiny.vmdk"),
        "vmdk",
        firmware="efi",
        direct_boot=DirectBoot(Path("/store/k"), Path("/store/i"), "quiet"),
    ),
    HardwareModel(
        "odd",
        memory_mib=100,
        cpus=3,
        nic_type="e1000",
        boot_order=("network", "disk"),
        nat_rules=(NatRule("web", 80),),
    ),
    network="nat",
    nics=(PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1", 16),),
    tags={"run": "ü", "node": "db-0"},
)


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    return Store(tmp_path / "home")


@pytest.mark.parametrize(
    "record",
    [
        Record(SPEC),
        Record(SPEC, created=12.5, process=Process(42, 4711, "boot"), ssh_port=2222),
        Record(SPEC, saved=True, starting=True),
        Record(replace(SPEC, freeze_to=Path("/store/templates/tiny-1"))),
        Record(replace(SPEC, thaw_from=Path("/store/templates/tiny-1")), was_on=True, late_s=1.5),
        Record(SPEC, was_on=True, halted={"running:here": 1.25}),
        Record(replace(SPEC, image=replace(SPEC.image, direct_boot=None), nics=())),
    ],
)
def test_a_record_comes_back_as_it_was_saved(store, record):
    """Everything that is needed to operate the machine survives."""
    store.add(record)
    assert store.load("db-0") == record


def test_no_secret_is_written(store):
    """The image's login stays in the image store."""
    login = Login(password="geheim", sudo_password="auch geheim")
    folder = store.add(Record(replace(SPEC, image=replace(SPEC.image, login=login))))
    assert "geheim" not in (folder / "machine.json").read_text()


def test_saving_replaces_the_whole_record(store):
    """Nothing but the record is left in the folder, so a reader sees the old one or the new one."""
    folder = store.add(Record(SPEC))
    store.save(Record(SPEC, ssh_port=1))
    assert [path.name for path in folder.iterdir()] == ["machine.json"]
    assert store.load("db-0").ssh_port == 1


def test_off_forgets_the_process(store):
    """A machine without process has no port, is saved only if that is said, and was on nevertheless."""
    running = Record(SPEC, process=Process(42, 4711, "boot"), starting=True, ssh_port=1, was_on=True)
    assert running.off() == Record(SPEC, created=running.created, was_on=True)
    assert running.off(saved=True).saved


def test_a_name_is_taken_once(store):
    """The second machine of a name is refused and the first one's record is untouched."""
    store.add(Record(SPEC))
    with pytest.raises(MachineExistsError, match="vmfest instance destroy db-0"):
        store.add(Record(replace(SPEC, tags={})))
    assert store.load("db-0").spec.tags == SPEC.tags


@pytest.mark.parametrize("name", ["nobody", "../..", "", "A", "a/b", "."])
def test_names_that_no_machine_has(store, name):
    """Also one that would lead out of the store is only a machine that is not there."""
    with pytest.raises(MachineNotFoundError, match="no machine named"):
        store.load(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": 1}'])
def test_a_damaged_record(store, text):
    """The error names the file and what to do."""
    folder = store.add(Record(SPEC))
    (folder / "machine.json").write_text(text)
    with pytest.raises(DriverError, match=r"(?s)machine.json.*vmfest instance destroy db-0"):
        store.load("db-0")


def test_a_record_of_a_later_version(store):
    """A hardware model or NIC with unknown fields is a damaged record, not a crash."""
    folder = store.add(Record(SPEC))
    data = json.loads((folder / "machine.json").read_text())
    data["hardware"]["gpus"] = 1
    (folder / "machine.json").write_text(json.dumps(data))
    with pytest.raises(DriverError, match="damaged"):
        store.load("db-0")


def test_names_lists_all_folders(store, tmp_path):
    """Without any machine the list is empty; half-created ones are in it."""
    assert store.names() == []
    store.add(Record(SPEC))
    (tmp_path / "home" / "machines" / "a-half-one").mkdir()
    (tmp_path / "home" / "machines" / "a-file").write_text("")
    assert store.names() == ["a-half-one", "db-0"]


def test_a_new_machine_that_cannot_be_recorded(store, monkeypatch):
    """When the record cannot be written, the folder goes again."""

    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="No space left"):
        store.add(Record(SPEC))
    assert store.names() == []


def test_the_log_tail(tmp_path):
    """The last lines of what QEMU printed; nothing without a log."""
    assert log_tail(tmp_path) == ""
    (tmp_path / "qemu.log").write_text("".join(f"line {number}\n" for number in range(20)))
    assert log_tail(tmp_path).splitlines() == [f"line {number}" for number in range(15, 20)]
