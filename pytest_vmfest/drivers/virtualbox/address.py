"""The guest's address, as far as anybody outside of the guest can know it. Waiting is the caller's."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.drivers.virtualbox.hostonly import find_dhcp_server, network_name
from pytest_vmfest.drivers.virtualbox.networks import is_host_only

if TYPE_CHECKING:
    from virtualbox.library import IMachine

    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.specs import NetworkMode

_NEIGHBOURS = Path("/proc/net/arp")
_GUEST_NETS = "/VirtualBox/GuestInfo/Net"
_DISCARD_PORT = 9
_COMPLETE = 0x2  # ATF_COM of Linux's if_arp.h
# The server has not written its file yet, or has not heard of the guest.
_NOT_YET = (trouble.FILE_ERROR, trouble.OBJECT_NOT_FOUND)


def look(connection: Connection, machine: IMachine, mode: NetworkMode) -> str | None:
    """One look at the address on slot 0 of a running machine; None if it is not known yet.

    By the DHCP server of its host-only interface, by the guest's additions if they run, in network mode
    bridged also by whom this host has heard on the LAN. Behind NAT there is none that would be of use.
    """
    if mode == "nat":
        return None
    with trouble.translated(f"machine {machine.name!r}: its address cannot be asked for"):
        card = machine.get_network_adapter(0)
        mac = str(card.mac_address)
        if is_host_only(mode):
            found = _lease(connection, str(card.host_only_interface), mac)
        else:
            found = neighbour(mac)
        return found or _told_by_additions(machine, mac)


def _lease(connection: Connection, interface: str, mac: str) -> str | None:
    server = find_dhcp_server(connection, network_name(interface))
    if server is None:
        return None
    try:
        address, state, _, expires = server._i.findLeaseByMAC(mac, 0)
    except Exception as error:
        if trouble.ignoring(error, *_NOT_YET):
            return None
        raise
    if state == "acked" and expires > time.time():
        return str(address)
    # Machines come and go, and the server remembers who had an address long ago. But a guest that was halted
    # or went back to a snapshot still uses an address that it believes to have.
    _knock(str(address))
    return str(address) if neighbour(mac) == str(address) else None


def _knock(address: str) -> None:
    """Make this host ask for the neighbour with the address; the answer is in its table later."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knocking:
        knocking.sendto(b"", socket.MSG_DONTWAIT, (address, _DISCARD_PORT))


def _told_by_additions(machine: IMachine, mac: str) -> str | None:
    """The address of the guest's interface that has slot 0's MAC, in the guest's own order of interfaces."""
    count = str(machine.get_guest_property_value(f"{_GUEST_NETS}/Count"))
    for index in range(int(count) if count.isdigit() else 0):
        if str(machine.get_guest_property_value(f"{_GUEST_NETS}/{index}/MAC")).upper() == mac.upper():
            return str(machine.get_guest_property_value(f"{_GUEST_NETS}/{index}/V4/IP")) or None
    return None


def neighbour(mac: str, table: Path = _NEIGHBOURS) -> str | None:
    """The address of the neighbour with this MAC (``080027010203``), whom this host has heard."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return None
    # Address, kind of hardware, flags, MAC, mask, interface.
    for address, _, flags, heard, *_ in (fields for fields in map(str.split, lines) if len(fields) >= 6):
        if heard.replace(":", "").upper() == mac.upper() and int(flags, 16) & _COMPLETE:
            return address
    return None
