"""Machines frozen with their memory, for others to go on from.

A frozen machine is a folder: VirtualBox's saved state, the disk as a model of its own, what the console has
said. A machine that goes on from it is created like any other, on a differencing image of that disk, and
adopts the state before its first start.

Its cards then have the addresses of the frozen machine's, whatever its settings say: they are part of the
state. So they are plugged in nowhere but behind the NAT, which every machine has for itself, until the guest
has been told its own addresses by that way (`adopt_script`).
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
from pytest_vmfest.drivers.virtualbox import console
from pytest_vmfest.drivers.virtualbox.hardware import DISK_CONTROLLER
from pytest_vmfest.errors import NotSupportedError, ThawError
from pytest_vmfest.folders import writing_to

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_CARD = "/var/lib/vmfest/card"
"""Where guests have the program ``card.S``."""


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
        _host_cpu(),
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
    return ""


def _host_cpu() -> list[str]:
    """What tells a host's CPU from another one."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    told = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    return [line for line in lines if line.partition(":")[0].strip() in told]


# --- freezing --------------------------------------------------------------------------------------


def keep(
    connection: Connection, machine: IMachine, slots: int, folder: Path, target: Path, deadline: Deadline
) -> None:
    """Keep a saved machine, whose files are in ``folder``, in ``target``; it is to be removed then."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    doing = f"machine {machine.name!r} cannot be frozen"
    with writing_to(target):
        os.link(machine.state_file_path, target / STATE)
        (target / _CONSOLE).write_text(console.text(folder))
    disk = machine.get_medium(DISK_CONTROLLER, 0, 0)
    copy = connection.vbox.create_medium(
        "VDI", str(target / DISK), AccessMode.read_write, DeviceType.hard_disk
    )
    try:
        # With all that it stands on, so that it is a model like any other.
        connection.wait(disk.clone_to_base(copy, [MediumVariant.standard]), deadline, doing)
    finally:
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


def adopt(machine: IMachine, folder: Path, source: Path) -> None:
    """Let a new machine, which is write-locked, go on from the frozen one in ``source`` when it starts."""
    state = folder / _ADOPTED
    try:
        with suppress(FileNotFoundError):
            state.unlink()
        # VirtualBox only reads it, and removes this name of it.
        os.link(source / STATE, state)
        shutil.copyfile(source / _CONSOLE, folder / console.FILE)
    except FileNotFoundError as error:
        raise ThawError(f"the frozen machine in {source} is not whole: {error}") from error
    except OSError:
        with writing_to(folder):
            raise
    machine.adopt_saved_state(str(state))


def adopt_script(was: Sequence[str], now: Sequence[str]) -> str:
    """A POSIX shell script, run as root: the cards get their own addresses, and ask for others' anew.

    It wants the program on standard input. It needs ``ip`` (iproute2 or busybox) in the guest.
    """
    text = [_HEAD]
    text += [f"move {old} {new}" for old, new in zip(was, now, strict=True)]
    return "\n".join(text)


def program() -> bytes:
    """The program that gives a card its address, for Linux on x86-64."""
    return Path(__file__).with_name("card.bin").read_bytes()


# Who asks for addresses does so by the one that the card had when it began: it is begun anew, as it was.
_HEAD = f"""\
set -e
mkdir -p {_CARD.rpartition("/")[0]}
cat > {_CARD}
chmod 755 {_CARD}
move() {{
  dev=
  for path in /sys/class/net/*; do
    read -r address < "$path/address" && [ "$address" = "$1" ] && dev=${{path##*/}}
  done
  [ -n "$dev" ] || {{ echo "no network interface has the MAC $1" >&2; exit 1; }}
  again=
  for path in /proc/[0-9]*; do
    read -r name < "$path/comm" || continue
    case $name in
    udhcpc | dhclient | dhcpcd)
      if tr '\\0' '\\n' < "$path/cmdline" | grep -qx "$dev"; then
        kill "${{path##*/}}"
        again="$again$(tr '\\0' ' ' < "$path/cmdline")"
      fi
      ;;
    esac
  done 2> /dev/null
  ip link set dev "$dev" down
  {_CARD} "$dev" "$(echo "$2" | tr -d :)"
  ip link set dev "$dev" address "$2"
  ip link set dev "$dev" up
  [ -z "$again" ] || $again < /dev/null > /dev/null 2>&1 &
}}"""
