"""What frozen machines of VirtualBox's depend on, and what guests that go on from them are told."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

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


def test_the_script_is_one_for_every_shell():
    """It is POSIX shell text, and moves each card from the old address to the new one."""
    text = frozen.adopt_script(["08:00:27:00:00:01"], ["08:00:27:00:00:02"])
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert text.endswith("\nmove 08:00:27:00:00:01 08:00:27:00:00:02")


# --- the program -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((), 2),
        (("lo",), 2),
        (("lo", "080027000001", "x"), 2),
        (("much-too-long-for-a-card", "080027000001"), 2),
        (("lo", "080027000001"), 1),
        (("no-such-card", "080027000001"), 1),
    ],
)
def test_what_the_program_refuses(tmp_path, arguments, status):
    """Wrong arguments, and cards that have no EEPROM."""
    path = tmp_path / "card"
    path.write_bytes(frozen.program())
    path.chmod(0o755)
    assert subprocess.run([path, *arguments], timeout=10, check=False).returncode == status


def test_the_program_is_what_its_source_says(tmp_path):
    """Assembled and linked as the source says, it is the file that is shipped."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("needs GNU binutils")
    source = Path(frozen.__file__).with_name("card.S")
    for command in re.findall(r"^#   ((?:as|ld) .*)$", source.read_text(), re.MULTILINE):
        subprocess.run(
            ["sh", "-c", command.replace("card.S", str(source))], cwd=tmp_path, check=True, timeout=60
        )
    assert (tmp_path / "card.bin").read_bytes() == frozen.program()
