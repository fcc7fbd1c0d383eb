"""QEMU's command line, as a function of the spec."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_vmfest.devices import NatRule
from pytest_vmfest.drivers.qemu.command import Memory, Wiring, command_line, mac_address
from pytest_vmfest.specs import DirectBoot, HardwareModel, ImageModel, MachineSpec, PrivateNic

IMAGE = ImageModel("tiny", Path("/store/tiny.qcow2"), "qcow2")
SPEC = MachineSpec("web-0", IMAGE, HardwareModel("odd", memory_mib=777, cpus=3))


def build(spec=SPEC, **options):
    """The command line with what most tests do not care for."""
    options = {"program": "/bin/qemu", "accel": "tcg", "wiring": Wiring(7)} | options
    return command_line(spec, **options)


def values(command, option):
    """What is given for an option, each time that it is given."""
    return [value for before, value in pairwise(command) if before == option]


def test_size_and_name():
    """Memory, CPUs and name are those of the spec."""
    command = build()
    assert command[0] == "/bin/qemu"
    assert values(command, "-m") == ["777M"]
    assert values(command, "-smp") == ["3"]
    assert values(command, "-name") == ["web-0"]


def test_no_path_of_the_machine_is_absolute():
    """Sockets and files of the machine are relative, so that no path grows too long for a socket."""
    text = " ".join(build())
    assert "disk.qcow2" in text
    assert "path=ctl.sock" in text
    assert "/" not in text.removeprefix("/bin/qemu")


def test_the_accelerators():
    """Under emulation a lean CPU and a bounded translation buffer, under KVM the host's CPU."""
    emulated, real = build(), build(accel="kvm")
    assert values(emulated, "-accel")[0].startswith("tcg,thread=multi,tb-size=")
    assert values(emulated, "-cpu") == ["Nehalem"]
    assert values(real, "-accel") == ["kvm"]
    assert values(real, "-cpu") == ["host"]


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_a_cpu_model_of_the_users_own(accel):
    """A configured CPU model takes the place of the accelerator's, its features included."""
    assert values(build(accel=accel, cpu="EPYC-v4,+svm"), "-cpu") == ["EPYC-v4,+svm"]


@pytest.mark.parametrize(("gui", "display"), [(False, "none"), (True, "gtk")])
def test_the_window(gui, display):
    """The screen is shown only if that is asked for."""
    assert values(build(gui=gui), "-display") == [display]


def test_the_disk_is_an_overlay_that_is_never_flushed():
    """The disk is the machine's own qcow2, and nothing of it has to survive the host's power."""
    (disk,) = (json.loads(text) for text in values(build(), "-blockdev"))
    assert (disk["driver"], disk["file"]["filename"]) == ("qcow2", "disk.qcow2")
    assert disk["cache"]["no-flush"]
    assert disk["discard"] == "unmap"
    assert disk["file"]["aio"] == "threads"
    (disk,) = (json.loads(text) for text in values(build(aio="io_uring"), "-blockdev"))
    assert disk["file"]["aio"] == "io_uring"


def test_direct_boot():
    """A kernel, its initrd and its command line are passed as they are; without one, firmware boots."""
    boot = DirectBoot(Path("/store/with, comma/vmlinux"), Path("/store/initrd"), "quiet a=b,c")
    command = build(replace(SPEC, image=replace(IMAGE, direct_boot=boot)))
    assert values(command, "-kernel") == ["/store/with, comma/vmlinux"]
    assert values(command, "-initrd") == ["/store/initrd"]
    assert values(command, "-append") == ["quiet a=b,c"]
    assert values(build(), "-kernel") == []
    without = replace(IMAGE, direct_boot=replace(boot, initrd=None))
    assert values(build(replace(SPEC, image=without)), "-initrd") == []


def test_efi_firmware():
    """OVMF's code is read-only and shared, the variables are the machine's own."""
    command = build(firmware=Path("/fw/code, 4M.fd"))
    nodes = {node["node-name"]: node for node in map(json.loads, values(command, "-blockdev"))}
    assert nodes["efi-code"]["filename"] == "/fw/code, 4M.fd"
    assert nodes["efi-code"]["read-only"]
    assert nodes["efi-variables"]["filename"] == "efi-variables.fd"
    assert "pflash0=efi-code,pflash1=efi-variables" in values(command, "-machine")


@pytest.mark.parametrize(("mode", "restricted"), [("local", False), ("nat", False), ("internal", True)])
def test_slot_0(mode, restricted):
    """SSH comes in through a port that QEMU chooses on loopback; only an internal machine has no way out."""
    (network,) = values(build(replace(SPEC, network=mode)), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:0-:22" in network
    assert "hostname=web-0" in network
    assert ("restrict=on" in network) is restricted


def test_the_hardware_maps_first_network_card():
    """Make and MAC are those that the hardware model says; its ROM is there to boot from the network only."""
    said = replace(SPEC.hardware, nic_type="e1000", mac="08:00:27:01:02:03", boot_order=("network", "disk"))
    command = build(replace(SPEC, hardware=said))
    assert "e1000,netdev=net0,mac=08:00:27:01:02:03,bootindex=1" in values(command, "-device")
    assert "virtio-blk-pci,drive=disk,bootindex=2" in values(command, "-device")
    assert f"virtio-net-pci,netdev=net0,mac={mac_address('web-0')},romfile=" in values(build(), "-device")


def test_a_boot_order_is_the_firmwares():
    """What is said of the boot order would mean nothing to a kernel that is started past the firmware."""
    boot = DirectBoot(Path("/store/vmlinux"), None, "quiet")
    spec = replace(SPEC, image=replace(IMAGE, direct_boot=boot))
    ordered = replace(spec, hardware=replace(SPEC.hardware, boot_order=("network",)))
    assert values(build(spec), "-kernel") == ["/store/vmlinux"]
    assert values(build(ordered), "-kernel") == []
    assert "virtio-blk-pci,drive=disk" in values(build(ordered), "-device")


def test_nat_rules():
    """Each rule is a redirect; QEMU chooses a port where none is given."""
    rules = (NatRule("web", 80), NatRule("dns", 53, "udp", "0.0.0.0", 5353, "10.0.2.15"))
    (network,) = values(build(replace(SPEC, hardware=replace(SPEC.hardware, nat_rules=rules))), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:0-:80" in network
    assert "hostfwd=udp:0.0.0.0:5353-10.0.2.15:53" in network


def test_the_screens_memory():
    """It is QEMU's default unless the hardware model says it."""
    assert values(build(replace(SPEC, hardware=replace(SPEC.hardware, vram_mib=32))), "-global") == [
        "VGA.vgamem_mb=32"
    ]
    assert values(build(), "-global") == []


def test_private_networks():
    """Each private NIC has its MAC and the descriptor of its connection to the network's switch."""
    nics = (
        PrivateNic("a", "52:54:00:00:00:0a", "10.0.0.1"),
        PrivateNic("b", "52:54:00:00:00:0b", "10.0.0.2"),
    )
    wiring = Wiring(7, (11, 12))
    command = build(replace(SPEC, nics=nics), wiring=wiring)
    assert wiring.fds == (7, 11, 12)
    assert [text for text in values(command, "-netdev") if text.startswith("stream")] == [
        "stream,id=net1,server=off,addr.type=fd,addr.str=11",
        "stream,id=net2,server=off,addr.type=fd,addr.str=12",
    ]
    cards = [text for text in values(command, "-device") if text.startswith("virtio-net")]
    assert [card.split(",")[1:3] for card in cards] == [
        ["netdev=net0", f"mac={mac_address('web-0')}"],
        ["netdev=net1", "mac=52:54:00:00:00:0a"],
        ["netdev=net2", "mac=52:54:00:00:00:0b"],
    ]


def test_macs_differ_between_machines():
    """Slot 0 has a unicast MAC in QEMU's range, another one for another name, always the same for one."""
    names = [f"node-{number}" for number in range(200)]
    macs = {mac_address(name) for name in names}
    assert len(macs) == 200
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)
    assert mac_address("node-0") == mac_address("node-0")


def test_going_on_from_a_snapshot():
    """A snapshot is loaded before the CPU runs, which may stay halted."""
    assert values(build(load="saved"), "-loadvm") == ["saved"]
    assert "-S" not in build(load="saved")
    assert "-S" in build(load="paused:x", halted=True)
    assert "-loadvm" not in build()


def test_the_console_is_appended_to():
    """The serial port goes to a file that is kept over restarts."""
    assert "file,id=console,path=console.log,append=on" in values(build(), "-chardev")


@pytest.mark.parametrize("is_shared", [True, False])
def test_memory_in_a_file(is_shared):
    """The file is as large as the memory; whether writes are seen in it is as it is said."""
    command = build(memory=Memory(Path("/store/with, comma/memory"), is_shared))
    (text,) = values(command, "-object")
    backend = json.loads(text)
    assert backend["qom-type"] == "memory-backend-file"
    assert (backend["mem-path"], backend["share"]) == ("/store/with, comma/memory", is_shared)
    assert backend["size"] == 777 << 20
    assert f"memory-backend={backend['id']}" in values(command, "-machine")


def test_memory_is_called_the_same_in_a_file_and_without():
    """So a snapshot of one can be loaded by the other; without a file, QEMU makes the memory by itself."""
    (text,) = values(build(memory=Memory(Path("/m"), is_shared=False)), "-object")
    assert json.loads(text)["id"] == "pc.ram"
    assert json.loads(text)["x-use-canonical-path-for-ramblock-id"] is False
    assert values(build(), "-object") == []
    assert not any("memory-backend" in text for text in values(build(), "-machine"))


def test_waiting_for_a_frozen_machines_state():
    """QEMU is told later where that is."""
    assert values(build(incoming=True), "-incoming") == ["defer"]
    assert "-incoming" not in build()


def test_another_mac_for_slot_0():
    """A machine that goes on from another one has its MAC; that of the hardware model is before it."""
    other = "52:54:00:11:22:33"
    assert f"virtio-net-pci,netdev=net0,mac={other},romfile=" in values(build(mac=other), "-device")
    hardware = replace(SPEC.hardware, mac="08:00:27:01:02:03")
    (card,) = [
        text
        for text in values(build(replace(SPEC, hardware=hardware), mac=other), "-device")
        if "mac=" in text
    ]
    assert "mac=08:00:27:01:02:03" in card


def test_every_machine_has_a_generation_id():
    """QEMU makes another one at each start, which tells the guest that it was resumed."""
    for options in ({}, {"incoming": True}, {"load": "saved"}):
        assert values(build(**options), "-device").count("vmgenid,guid=auto") == 1
