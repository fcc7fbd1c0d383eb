"""QEMU's command line for a machine: a pure function of its spec.

All paths in the machine's folder are relative, as QEMU is started there: the path of a Unix socket ends at
107 characters, and the store's may be longer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_vmfest.drivers.qemu import record
from pytest_vmfest.drivers.qemu.accel import KVM_CPU

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vmfest.devices import BootDevice
    from pytest_vmfest.drivers.qemu.aio import Aio
    from pytest_vmfest.specs import MachineSpec

DISK_NODE = "disk"
"""The name of the disk among QEMU's block nodes."""

NAT_ID = "net0"
"""The id of the user-mode network on slot 0."""

# Nehalem boots about a quarter faster under emulation than the richer models, whose features cost
# translation. 64-bit distributions that ask for x86-64-v2 run on it.
_TCG_CPU = "Nehalem"
# Translated code: enough that a booted Linux is not translated twice, far from the default's GiB.
_TRANSLATION_BUFFER_MIB = 128


_CARDS = {
    "e1000": "e1000",
    "e1000-82545em": "e1000-82545em",
    "pcnet": "pcnet",
    "virtio": "virtio-net-pci",
}
# What QEMU itself calls the memory of this machine type.
_MEMORY_ID = "pc.ram"
# The ROM would only serve to boot from the network.
_NO_ROM = ",romfile="


@dataclass(frozen=True)
class Memory:
    """The file that a machine's memory is in, and whether what it writes is seen there."""

    path: Path
    is_shared: bool


@dataclass(frozen=True)
class Wiring:
    """The descriptors that QEMU inherits: its monitor's, and one per private network in the spec's order."""

    monitor: int
    nics: tuple[int, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """All of them."""
        return (self.monitor, *self.nics)


def command_line(
    spec: MachineSpec,
    *,
    program: str,
    accel: Literal["kvm", "tcg"],
    cpu: str | None = None,
    aio: Aio = "threads",
    wiring: Wiring,
    firmware: Path | None = None,
    load: str | None = None,
    mac: str | None = None,
    memory: Memory | None = None,
    incoming: bool = False,
    halted: bool = False,
    gui: bool = False,
) -> list[str]:
    """The arguments that start the machine, the program first.

    ``cpu`` is the CPU model, if it is not to be the accelerator's usual one; ``aio`` how the disk file is
    read and written; ``firmware`` OVMF's code for a machine with EFI; ``load`` a snapshot with memory to go
    on from; ``mac`` the MAC of slot 0, if it is not to be the machine's own; ``memory`` where its memory is,
    if that is to be a file; ``incoming`` waits to be told a frozen machine's state; ``halted`` leaves the
    virtual CPU halted; ``gui`` opens a window.
    """
    return [
        program,
        *("-name", spec.name, "-no-user-config", "-nodefaults", "-display", "gtk" if gui else "none"),
        *_processor(spec, accel, cpu, memory),
        *_boot(spec, firmware),
        *_disk(_boot_index(spec, "disk"), aio),
        *_nat(spec, mac or mac_address(spec.name)),
        *_private_networks(spec, wiring),
        *(*_screen(spec), "-device", "virtio-rng-pci", "-rtc", "base=utc"),
        # By it a kernel learns that it was resumed, and makes its random numbers its own.
        *("-device", "vmgenid,guid=auto"),
        *("-chardev", f"file,id=console,path={record.CONSOLE},append=on", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=owner,fd={wiring.monitor}", "-mon", "chardev=owner,mode=control"),
        *("-chardev", f"socket,id=control,path={record.CONTROL},server=on,wait=off"),
        *("-mon", "chardev=control,mode=control"),
        *("-pidfile", record.PID_FILE),
        *(("-loadvm", load) if load else ()),
        *(("-incoming", "defer") if incoming else ()),
        *(("-S",) if halted else ()),
    ]


def mac_address(name: str) -> str:
    """The MAC of slot 0, another one for each machine: QEMU's prefix and a digest of the name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def _processor(spec: MachineSpec, accel: str, cpu: str | None, memory: Memory | None) -> list[str]:
    if accel == "kvm":
        chosen = ["-accel", "kvm", "-cpu", cpu or KVM_CPU]
    else:
        chosen = [
            *("-accel", f"tcg,thread=multi,tb-size={_TRANSLATION_BUFFER_MIB}"),
            *("-cpu", cpu or _TCG_CPU),
        ]
    hardware = spec.hardware
    return [
        # Controllers that no machine of ours uses; firmware and kernel would spend time on them.
        *("-machine", "q35,sata=off,smbus=off,vmport=off"),
        *(_memory(spec, memory) if memory else ()),
        *chosen,
        *("-m", f"{hardware.memory_mib}M", "-smp", str(hardware.cpus)),
    ]


def _memory(spec: MachineSpec, memory: Memory) -> list[str]:
    backend = {
        "qom-type": "memory-backend-file",
        "id": _MEMORY_ID,
        "size": spec.hardware.memory_mib << 20,
        "mem-path": str(memory.path),
        "share": memory.is_shared,
        # In snapshots it is called as it is without such a file.
        "x-use-canonical-path-for-ramblock-id": False,
    }
    return ["-machine", f"memory-backend={_MEMORY_ID}", "-object", json.dumps(backend)]


def _screen(spec: MachineSpec) -> list[str]:
    vram_mib = spec.hardware.vram_mib
    return ["-vga", "std", *(("-global", f"VGA.vgamem_mb={vram_mib}") if vram_mib else ())]


def _boot_index(spec: MachineSpec, device: BootDevice) -> str:
    """What makes the firmware try a device at its place in the boot order, if it is there."""
    order = spec.hardware.boot_order or ("disk",)
    return f",bootindex={order.index(device) + 1}" if device in order else ""


def _boot(spec: MachineSpec, firmware: Path | None) -> list[str]:
    arguments = []
    if firmware is not None:
        code = {"driver": "file", "filename": str(firmware), "node-name": "efi-code", "read-only": True}
        variables = {"driver": "file", "filename": record.EFI_VARIABLES, "node-name": "efi-variables"}
        arguments += ["-blockdev", json.dumps(code), "-blockdev", json.dumps(variables)]
        arguments += ["-machine", "pflash0=efi-code,pflash1=efi-variables"]
    boot = spec.image.direct_boot
    if boot is not None and not spec.hardware.boot_order:
        arguments += ["-kernel", str(boot.kernel), "-append", boot.command_line]
        arguments += ["-initrd", str(boot.initrd)] if boot.initrd else []
    return arguments


def _disk(boot_index: str, aio: Aio) -> list[str]:
    # no-flush: the disk is thrown away, so nothing of it has to survive the host's power.
    cache = {"no-flush": True, "direct": False}
    node = {
        "driver": "qcow2",
        "node-name": DISK_NODE,
        "discard": "unmap",
        "cache": cache,
        "file": {
            "driver": "file",
            "filename": record.DISK,
            "discard": "unmap",
            "cache": cache,
            "aio": aio,
        },
    }
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={DISK_NODE}{boot_index}"]


def _nat(spec: MachineSpec, mac: str) -> list[str]:
    # Port 0: QEMU takes a free one, and tells which. IPv6 leads nowhere here, and guests would wait for it.
    options = [f"user,id={NAT_ID},ipv6=off,hostname={spec.name}", "hostfwd=tcp:127.0.0.1:0-:22"]
    for rule in spec.hardware.nat_rules:
        entrance = f"{rule.protocol}:{rule.host}:{rule.host_port or 0}"
        options.append(f"hostfwd={entrance}-{rule.guest}:{rule.guest_port}")
    if spec.network == "internal":
        # Reached from this host by SSH, but with no way out.
        options.append("restrict=on")
    make = _CARDS[spec.hardware.nic_type or "virtio"]
    card = _network_card(NAT_ID, spec.hardware.mac or mac, make)
    boot_index = _boot_index(spec, "network")
    if boot_index:
        card = card.removesuffix(_NO_ROM) + boot_index
    return ["-netdev", ",".join(options), "-device", card]


def _private_networks(spec: MachineSpec, wiring: Wiring) -> list[str]:
    arguments = []
    for slot, (nic, fd) in enumerate(zip(spec.nics, wiring.nics, strict=True), start=1):
        arguments += ["-netdev", f"stream,id=net{slot},server=off,addr.type=fd,addr.str={fd}"]
        arguments += ["-device", _network_card(f"net{slot}", nic.mac)]
    return arguments


def _network_card(network: str, mac: str, make: str = _CARDS["virtio"]) -> str:
    return f"{make},netdev={network},mac={mac}{_NO_ROM}"
