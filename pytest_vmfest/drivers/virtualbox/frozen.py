"""Machines frozen with their memory, for others to go on from.

A frozen machine is a folder: VirtualBox's saved state, the disk as a model of its own, what the console has
said. A machine that goes on from it is created like any other, on a differencing image of that disk, and
adopts the state before its first start.

Its cards then have the addresses of the frozen machine's, whatever its settings say: they are part of the
state. So they are plugged in nowhere but behind the NAT, which every machine has for itself, until the guest
has been told its own addresses by that way (`moving`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.disk_images import cache_name
from pytest_vmfest.drivers.host_cpu import host_cpu
from pytest_vmfest.drivers.virtualbox import console, networks
from pytest_vmfest.drivers.virtualbox.hardware import DISK_CONTROLLER
from pytest_vmfest.errors import NotSupportedError, ThawError, clean_up_after
from pytest_vmfest.folders import writing_to

if TYPE_CHECKING:
    from virtualbox.library import IMachine

    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.specs import ImageModel, MachineSpec
    from pytest_vmfest.waiting import Deadline

STATE = "state.sav"
DISK = "disk.vdi"
_CONSOLE = "console.log"
_FACTS = "frozen.json"

# Counted up when what is in the folder changes.
_FORMAT = 1

# What VirtualBox removes once the machine has gone on from it.
_ADOPTED = "frozen.sav"
_CANCEL_MS = 20_000
# A card of this make has no link for 3 s after it went on or was plugged in, or as long as it is told.
_LINK_UP_MS = "100"


@dataclass(frozen=True)
class Facts:
    """What has to be known of a frozen machine: the addresses of its network cards, by slot."""

    macs: tuple[str, ...]


def key(spec: MachineSpec, version: str) -> str:
    """What a frozen machine of this spec depends on, on this host: else nobody can go on from it.

    Raises `NotSupportedError` for machines that cannot be frozen, `OSError` for a disk that cannot be read.
    """
    if reason := _why_not(spec):
        raise NotSupportedError(f"the virtualbox driver cannot freeze machines {reason}")
    hardware = replace(spec.hardware, name="", nat_rules=(), description="")
    facts = [
        _FORMAT,
        version,
        platform.release(),
        host_cpu(),
        cache_name(spec.image),
        str(spec.os_type),
        spec.image.os_64_bit,
        repr(hardware),
        spec.network,
        len(spec.nics),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _why_not(spec: MachineSpec) -> str:
    """What of the machine VirtualBox would have to copy and cannot, or what the guest could not be told."""
    hardware = spec.hardware
    if spec.network not in ("local", "nat"):
        return f"in network mode {spec.network}, where no way into the guest is its own"
    if spec.firmware == "efi":
        return "with EFI firmware"
    if hardware.controllers:
        return "with controllers of their own"
    if hardware.shared_folders:
        return "with shared folders"
    if spec.network == "local" and hardware.nic_type in ("pcnet", "virtio"):
        return f"with a network card ({hardware.nic_type}) whose address cannot be changed"
    if not spec.image.os_64_bit and (spec.network == "local" or spec.nics):
        return "of 32 bits"
    return ""


# --- freezing --------------------------------------------------------------------------------------


def keep(
    connection: Connection, machine: IMachine, slots: int, folder: Path, target: Path, deadline: Deadline
) -> None:
    """Keep a saved machine, whose files are in ``folder``, in ``target``; it is to be removed then."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    doing = f"machine {machine.name!r} cannot be frozen"
    with writing_to(target):
        _link(Path(machine.state_file_path), target / STATE)
        (target / _CONSOLE).write_text(console.text(folder))
    disk = machine.get_medium(DISK_CONTROLLER, 0, 0)
    copy = connection.vbox.create_medium(
        "VDI", str(target / DISK), AccessMode.read_write, DeviceType.hard_disk
    )
    # With all that it stands on, so that it is a model like any other.
    copying = disk.clone_to_base(copy, [MediumVariant.standard])
    try:
        connection.wait(copying, deadline, doing)
    except BaseException as error:
        # It is used by the service as long as that copies; what is not closed now is closed by `Media.sweep`.
        copying.wait_for_completion(_CANCEL_MS)
        clean_up_after(error, copy.close)
        raise
    with connection.registry_lock(), suppress(Exception):  # `Media.sweep` may have closed it
        copy.close()
    facts = Facts(tuple(mac_of(machine, slot) for slot in range(slots)))
    with writing_to(target):
        (target / _FACTS).write_text(json.dumps(asdict(facts)))


def mac_of(machine: IMachine, slot: int) -> str:
    """The address that a card has by the machine's settings, as guests write it: ``08:00:27:01:02:03``."""
    digits = str(machine.get_network_adapter(slot).mac_address).lower()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


# --- going on --------------------------------------------------------------------------------------


def facts_of(source: Path) -> Facts:
    """What has to be known of the frozen machine in ``source``; `ThawError` if it is not there."""
    try:
        said = json.loads((source / _FACTS).read_bytes())
        for name in (STATE, DISK, _CONSOLE):
            (source / name).stat()
        return Facts(tuple(said["macs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ThawError(f"there is no frozen machine in {source}: {error}") from error


def model(image: ImageModel, source: Path) -> ImageModel:
    """The image with the disk of the frozen machine in ``source``."""
    return replace(image, disk=source / DISK, format="vdi")


def fit_cards(machine: IMachine, spec: MachineSpec, facts: Facts) -> None:
    """Have the network cards of a new machine, not registered yet, go on as those of the frozen one did."""
    macs, behind = facts.macs, networks.nat_slot(spec.network)
    if behind is not None:
        # Its guest keeps that address, so it is to have it after its next start, too.
        machine.get_network_adapter(behind).mac_address = macs[behind].replace(":", "").upper()
    if spec.hardware.nic_type in (None, "e1000", "e1000-82545em"):
        for slot in range(len(macs)):
            machine.set_extra_data(f"VBoxInternal/Devices/e1000/{slot}/Config/LinkUpDelay", _LINK_UP_MS)


def adopt(machine: IMachine, folder: Path, source: Path) -> None:
    """Let a new machine, which is write-locked, go on from the frozen one in ``source`` when it starts."""
    state = folder / _ADOPTED
    try:
        # VirtualBox only reads it, and removes this name of it.
        _link(source / STATE, state)
        shutil.copyfile(source / _CONSOLE, folder / console.FILE)
    except FileNotFoundError as error:
        raise ThawError(f"the frozen machine in {source} is not whole: {error}") from error
    except OSError:
        with writing_to(folder):
            raise
    machine.adopt_saved_state(str(state))


def is_adopted(machine: IMachine) -> bool:
    """Whether a saved machine has not been started since it was made to go on from a frozen one."""
    return Path(str(machine.state_file_path)).name == _ADOPTED


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one that knows no links
        shutil.copyfile(source, target)
