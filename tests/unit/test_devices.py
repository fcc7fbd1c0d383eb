"""What a hardware model can say besides memory and CPUs, and what it refuses."""

import json

import pytest

from pytest_vmfest import Dvd, ExistingDisk, HardwareModel, NatRule, NewDisk, SharedFolder, StorageController
from pytest_vmfest.devices import check_mac
from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.specs import ImageModel, MachineSpec


def hardware(**said):
    """A hardware model of a usual size."""
    return HardwareModel("own", 512, 1, **said)


@pytest.fixture
def full(tmp_path):
    """A hardware model that leaves nothing open."""
    return hardware(
        vram_mib=16,
        controllers=[
            StorageController("ide", devices=[Dvd(), Dvd(tmp_path / "a.iso")]),
            StorageController("sas", "data", [ExistingDisk(tmp_path / "b.vdi"), NewDisk(8)]),
        ],
        nic_type="virtio",
        mac="08:00:27:01:02:03",
        boot_order=["dvd", "disk"],
        firmware="efi",
        shared_folders=[SharedFolder("src", tmp_path, read_only=True)],
        nat_rules=[NatRule("dns", 53, protocol="udp", host="0.0.0.0", host_port=5353, guest="10.0.2.15")],
        os_type="Debian_64",
        description="for the lab",
    )


def test_all_of_it_comes_back_from_json(full):
    """A record of a machine can hold whatever a hardware model says."""
    assert HardwareModel.from_json(json.loads(json.dumps(full.as_json()))) == full


def test_a_minimum_leaves_the_rest_alone(full):
    """Raising the memory drops nothing that was said."""
    raised = full.at_least(min_ram_mib=1024)
    assert raised.memory_mib == 1024
    assert raised.as_json() | {"memory_mib": 512} == full.as_json()


def test_paths_are_absolute(tmp_path, monkeypatch):
    """A path is meant as seen from where it was written, whoever starts the machine."""
    monkeypatch.chdir(tmp_path)
    assert ExistingDisk("a.vdi").path == Dvd("a.vdi").path == SharedFolder("f", "a.vdi").path
    assert ExistingDisk("a.vdi").path == tmp_path / "a.vdi"


def test_a_controller_is_called_like_its_bus():
    """A name has to be given only where there are two."""
    assert StorageController("scsi").name == "scsi"


def test_the_hardware_wins_over_the_image(tmp_path):
    """Firmware and OS type come from the image unless the hardware model says them."""
    image = ImageModel("x", tmp_path / "x", "vdi", firmware="efi", os_type="Linux_64")
    plain = MachineSpec("m", image, hardware())
    assert (plain.firmware, plain.os_type) == ("efi", "Linux_64")
    own = MachineSpec("m", image, hardware(firmware="bios", os_type="Other"))
    assert (own.firmware, own.os_type) == ("bios", "Other")


@pytest.mark.parametrize("mode", ["bridged", "internal"])
def test_nat_rules_need_a_nat(mode, tmp_path):
    """Rules are refused where they would lead nowhere."""
    image = ImageModel("x", tmp_path / "x", "vdi")
    with pytest.raises(ConfigurationError, match=f"no NAT in network mode {mode}"):
        MachineSpec("m", image, hardware(nat_rules=[NatRule("web", 80)]), network=mode)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"vram_mib": 0}, "vram_mib 0 is not valid.*from 1 to 256"),
        ({"vram_mib": "16"}, "vram_mib '16'"),
        ({"nic_type": "tulip"}, "nic_type 'tulip'.*one of e1000, .*virtio"),
        ({"mac": "08:00:27:01:02"}, "mac '08:00:27:01:02'"),
        ({"boot_order": ["tape"]}, "boot_order with 'tape'.*one of disk, dvd"),
        ({"boot_order": ["dvd", "dvd"]}, "boot_order with 'dvd', given twice"),
        ({"boot_order": "dvd"}, "boot_order 'dvd'.*a list or tuple"),
        ({"firmware": "coreboot"}, "firmware 'coreboot'.*bios, efi"),
        ({"controllers": [NewDisk(1)]}, "controllers with NewDisk.*StorageControllers"),
        ({"controllers": [StorageController("ide")] * 2}, "name in controllers 'ide', given twice"),
        ({"shared_folders": ["/srv"]}, "shared_folders with '/srv'.*SharedFolders"),
        ({"nat_rules": [NatRule("a", 1), NatRule("a", 2)]}, "name in nat_rules 'a', given twice"),
    ],
)
def test_what_no_hardware_can_be(said, expected):
    """The error names the field, the value, and what it takes."""
    with pytest.raises(ConfigurationError, match=f"(?s)hardware 'own': {expected}"):
        hardware(**said)


@pytest.mark.parametrize(("memory", "cpus"), [("512", 1), (512, 1.5), (True, 1)])
def test_sizes_are_whole_numbers(memory, cpus):
    """Anything else is refused before a hypervisor stumbles over it."""
    with pytest.raises(ConfigurationError, match="a whole number"):
        HardwareModel("own", memory, cpus)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: StorageController("usb"), "bus 'usb'.*ide, sata, scsi, sas"),
        (lambda: StorageController("sata", "disk"), "the image's own disk"),
        (lambda: StorageController("sata", "a/b"), "controller name 'a/b'"),
        (lambda: StorageController("ide", devices=[Dvd()] * 5), "5 devices on ide.*4 at most"),
        (lambda: StorageController("ide", devices=["x.iso"]), "device 'x.iso'.*ExistingDisk, NewDisk or Dvd"),
        (lambda: NewDisk(0), "size_mib of a new disk 0"),
        (lambda: ExistingDisk(""), "disk ''.*a path"),
        (lambda: Dvd(7), "dvd 7.*a path"),
        (lambda: SharedFolder("a b", "/srv"), "shared folder 'a b'"),
        (lambda: NatRule("web", 0), "NAT rule 'web': guest_port 0.*from 1 to 65535"),
        (lambda: NatRule("web", 80, host_port=70000), "host_port 70000"),
        (lambda: NatRule("web", 80, protocol="sctp"), "protocol 'sctp'.*tcp, udp"),
        (lambda: NatRule("web", 80, host="localhost"), "host 'localhost'.*IPv4"),
        (lambda: NatRule("ssh", 22), "NAT rule 'ssh'.*taken"),
    ],
)
def test_what_no_part_can_be(make, expected):
    """Each part of a hardware model checks itself when it is made."""
    with pytest.raises(ConfigurationError, match=f"(?s){expected}"):
        make()


@pytest.mark.parametrize(
    "mac", ["01:00:00:00:00:00", "08-00-27-01-02-03", "0800270102ff", "08:00:27:01:02:0G", 8]
)
def test_what_is_no_address_of_one_card(mac):
    """Group addresses and other ways of writing are refused."""
    with pytest.raises(ConfigurationError, match="08:00:27:01:02:03"):
        check_mac(mac, "mac")
