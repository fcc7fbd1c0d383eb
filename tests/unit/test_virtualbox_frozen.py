"""What frozen machines of VirtualBox's depend on."""

import re
from dataclasses import replace

import pytest

from pytest_vmfest.devices import NewDisk, SharedFolder, StorageController
from pytest_vmfest.drivers.virtualbox import frozen
from pytest_vmfest.errors import NotSupportedError, ThawError
from pytest_vmfest.specs import HardwareModel, ImageModel, MachineSpec, PrivateNic

SMALL = HardwareModel("small", 64, 1)
NIC = PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1")


@pytest.fixture
def spec(tmp_path):
    """A machine that can be frozen."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    return MachineSpec("m", ImageModel("tiny", disk, "raw"), SMALL, "local")


def test_what_the_key_depends_on(spec):
    """VirtualBox, hardware, network and image; not the name of the machine, and whom it belongs to."""
    key = frozen.key(spec, "7.2.22")
    assert frozen.key(replace(spec, name="other", tags={"run": "1"}), "7.2.22") == key
    others = [
        frozen.key(spec, "7.2.24"),
        frozen.key(replace(spec, hardware=replace(SMALL, memory_mib=96)), "7.2.22"),
        frozen.key(replace(spec, network="nat"), "7.2.22"),
        frozen.key(replace(spec, nics=(NIC,)), "7.2.22"),
    ]
    assert len({key, *others}) == 5
    other_net = replace(NIC, network="n", mac="52:54:00:00:00:02")
    assert frozen.key(replace(spec, nics=(other_net,)), "7.2.22") == others[-1]
    spec.image.disk.write_bytes(bytes(1024))
    assert frozen.key(spec, "7.2.22") != key


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"network": "bridged"}, "bridged"),
        ({"network": "internal"}, "internal"),
        ({"hardware": replace(SMALL, firmware="efi")}, "EFI"),
        (
            {"hardware": replace(SMALL, controllers=(StorageController("sata", devices=(NewDisk(1),)),))},
            "controll",
        ),
        ({"hardware": replace(SMALL, shared_folders=(SharedFolder("src", "/srv"),))}, "shared folders"),
        ({"hardware": replace(SMALL, nic_type="pcnet")}, "pcnet"),
    ],
)
def test_machines_that_cannot_be_frozen(spec, change, what):
    """The reason is told."""
    with pytest.raises(NotSupportedError, match=f"cannot freeze .*{what}"):
        frozen.key(replace(spec, **change), "7.2.22")


def test_a_card_that_keeps_its_address_behind_nat(spec):
    """There it need not be changed."""
    frozen.key(replace(spec, network="nat", hardware=replace(SMALL, nic_type="pcnet")), "7.2.22")


def test_a_folder_without_a_frozen_machine(tmp_path):
    """It is named."""
    with pytest.raises(ThawError, match=re.escape(str(tmp_path))):
        frozen.facts_of(tmp_path)
