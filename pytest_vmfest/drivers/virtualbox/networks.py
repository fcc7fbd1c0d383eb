"""A machine's network cards by network mode, and the private networks of a store.

==========  ==============================================  =======
mode        slot 0                                          slot 1
==========  ==============================================  =======
local       host-only: reached from this host               NAT: out
nat         NAT: out, and in by redirected ports
bridged     the LAN that this host is on
internal    host-only: reached from this host, no way out
==========  ==============================================  =======

Private networks follow, one card each. A machine that goes on from a frozen one is entered through its NAT,
until its cards have their own addresses and are plugged in.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.refusals import no_network
from pytest_vmfest.drivers.virtualbox import bridged, hostonly, nat, trouble
from pytest_vmfest.drivers.virtualbox.soap import is_this_host, without_password
from pytest_vmfest.errors import ConfigurationError, NotSupportedError
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.specs import check_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from virtualbox.library import IMachine, INetworkAdapter

    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.specs import MachineSpec, NetworkMode, PrivateNic

SLOTS = 8
"""The network cards that a machine has with VirtualBox's usual chipset."""

_CARDS = {
    "e1000": "I82540EM",
    "e1000-82545em": "I82545EM",
    "pcnet": "Am79C973",
    "virtio": "Virtio",
}


def nat_slot(mode: NetworkMode) -> int | None:
    """The slot of the card behind NAT, None where there is none."""
    return {"local": 1, "nat": 0}.get(mode)


def first_private_slot(mode: NetworkMode) -> int:
    """The slot of the first card on a private network."""
    return 2 if mode == "local" else 1


def seen_slots(mode: NetworkMode, nics: Sequence[PrivateNic]) -> list[int]:
    """The slots of the cards that other machines can see."""
    first = first_private_slot(mode)
    return [*([] if mode == "nat" else [0]), *range(first, first + len(nics))]


def is_host_only(mode: NetworkMode) -> bool:
    """Whether this host reaches the guest by its host-only interface."""
    return mode in ("local", "internal")


def configure(connection: Connection, settings: DriverSettings, machine: IMachine, spec: MachineSpec) -> None:
    """Set up the network cards of a new machine that is not registered yet.

    The host-only interface is created if it is missing. The cards of a machine that goes on from a frozen one
    are plugged in later, by `plug_in`, but for the one behind NAT, by which it is reached until then. Raises
    `ConfigurationError`, `NotSupportedError` (ports of another host), `DriverError`.
    """
    _check_ports(settings, spec)
    last = first_private_slot(spec.network) + len(spec.nics)
    if last > SLOTS:
        raise ConfigurationError(
            f"machine {spec.name!r}: {last} network cards, and VirtualBox's machines have {SLOTS}",
            hint=f"network mode {spec.network} leaves {SLOTS - last + len(spec.nics)} for private networks",
        )
    lan = bridged.bridged_interface(connection, settings) if spec.network == "bridged" else ""
    if is_host_only(spec.network):
        hostonly.ensure_local(connection, settings.local_interface)
    with trouble.translated(f"machine {spec.name!r}: its network cards cannot be set up"):
        for slot in range(SLOTS):
            machine.get_network_adapter(slot).enabled = False
        first = _card(connection, machine, 0, spec)
        if spec.hardware.mac:
            first.mac_address = spec.hardware.mac.replace(":", "")
        if spec.network == "bridged":
            _plug_into_lan(first, lan)
        behind = nat_slot(spec.network)
        if behind is not None:
            _plug_into_nat(first if behind == 0 else _card(connection, machine, behind, spec))
            by_nat = spec.network == "nat" or spec.thaw_from is not None
            nat.set_up(machine, behind, spec.hardware.nat_rules, ssh=by_nat)
        for slot, nic in enumerate(spec.nics, start=first_private_slot(spec.network)):
            _card(connection, machine, slot, spec).mac_address = nic.mac.replace(":", "")
    if spec.thaw_from is None:
        plug_in(settings, machine, spec.name, spec.network, spec.nics)


def plug_in(
    settings: DriverSettings,
    machine: IMachine,
    name: str,
    mode: NetworkMode,
    nics: Sequence[PrivateNic],
) -> None:
    """Connect the cards that other machines can see; the machine may be running."""
    with trouble.translated(f"machine {name!r}: its network cards cannot be plugged in"):
        if is_host_only(mode):
            _plug_into_host(machine.get_network_adapter(0), settings.local_interface)
        for slot, nic in enumerate(nics, start=first_private_slot(mode)):
            _plug_into_network(machine.get_network_adapter(slot), nic, settings.home)


def is_plugged_in(machine: IMachine, mode: NetworkMode, nics: Sequence[PrivateNic]) -> bool:
    """Whether the cards are connected that other machines can see."""
    from virtualbox.library import NetworkAttachmentType

    with trouble.translated(f"machine {machine.name!r}: its network cards cannot be looked at"):
        kinds = [machine.get_network_adapter(slot).attachment_type for slot in seen_slots(mode, nics)]
    return NetworkAttachmentType.null not in kinds


def _check_ports(settings: DriverSettings, spec: MachineSpec) -> None:
    """Refuse NAT rules on another host: its ports can neither be chosen nor looked at from here."""
    wants_ports = spec.network == "nat" or spec.hardware.nat_rules
    if not wants_ports or settings.url is None or is_this_host(settings.url):
        return
    what = "network mode nat needs" if spec.network == "nat" else "NAT rules need"
    raise NotSupportedError(
        f"machine {spec.name!r}: {what} a VirtualBox on this host, and "
        f"{without_password(settings.url)} is on another, where no ports can be chosen from here",
        hint="use network mode bridged, without NAT rules: there the guest has an address of its own",
    )


def _card(connection: Connection, machine: IMachine, slot: int, spec: MachineSpec) -> INetworkAdapter:
    """A card that is there, of the make that the hardware says, else one that all guests know."""
    card = machine.get_network_adapter(slot)
    make = _CARDS[(spec.hardware.nic_type if slot == 0 else None) or "e1000"]
    card._i.adapterType = getattr(connection.constants, f"NetworkAdapterType_{make}")
    card.enabled = True
    return card


def _plug_into_host(card: INetworkAdapter, interface: str) -> None:
    from virtualbox.library import NetworkAttachmentType

    # In this order: a machine that runs is plugged in by the second.
    card.host_only_interface = interface
    card.attachment_type = NetworkAttachmentType.host_only


def _plug_into_lan(card: INetworkAdapter, interface: str) -> None:
    from virtualbox.library import NetworkAttachmentType

    card.attachment_type = NetworkAttachmentType.bridged
    card.bridged_interface = interface


def _plug_into_nat(card: INetworkAdapter) -> None:
    from virtualbox.library import NetworkAttachmentType

    card.attachment_type = NetworkAttachmentType.nat


def _plug_into_network(card: INetworkAdapter, nic: PrivateNic, home: Path) -> None:
    from virtualbox.library import NetworkAttachmentType

    card.internal_network = internal_name(home, nic.network)
    card.attachment_type = NetworkAttachmentType.internal


# --- private networks ------------------------------------------------------------------------------
# VirtualBox has an internal network as soon as two machines name it. Markers tell which were created.


def create_network(home: Path, name: str) -> None:
    """Create a private network; one that is there stays. Raises `StoreError`."""
    marker = _marker(home, name)
    with writing_to(marker):
        make_private(marker.parent)
        marker.touch(mode=0o600)


def remove_network(home: Path, name: str) -> None:
    """Remove a private network; one that is not there is fine. Raises `StoreError`."""
    marker = _marker(home, name)
    with writing_to(marker):
        marker.unlink(missing_ok=True)


def check_networks(home: Path, nics: Iterable[PrivateNic]) -> None:
    """Raise `DriverError` if one of the cards is to be on a private network that was not created."""
    for nic in nics:
        if not _marker(home, nic.network).exists():
            raise no_network(nic.network)


def internal_name(home: Path, name: str) -> str:
    """VirtualBox's name of a private network: its names are the host's, ours the store's.

    >>> from pathlib import Path
    >>> internal_name(Path("/store"), "net-a")
    'vmfest-4d3a4db1-net-a'
    """
    return f"vmfest-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]}-{name}"


def _marker(home: Path, name: str) -> Path:
    return home / "virtualbox" / "networks" / check_label(name, "network name")
