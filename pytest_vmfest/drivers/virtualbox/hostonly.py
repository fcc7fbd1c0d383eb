"""Host-only interfaces (``vboxnet0``): created with their DHCP server where they are missing.

They belong to the host, like its other interfaces, and stay when the machines are gone.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.errors import ConfigurationError, DriverError, WaitTimeoutError
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from virtualbox.library import IDHCPServer, IHostNetworkInterface

    from pytest_vmfest.drivers.virtualbox.connection import Connection

_CREATE_TIMEOUT_S = 60.0

# On Linux, VirtualBox allows 192.168.56.0/21 without further ado: vboxnet0 to vboxnet7.
_FIRST_NET = 56
_LAST_NUMBER = 255 - _FIRST_NET
_MASK = "255.255.255.0"
_LEASES = (101, 254)
_LEASES_BELOW = (3, 99)


def interface_number(name: str) -> int:
    """The N of ``vboxnetN``; `ConfigurationError` for other names."""
    found = re.fullmatch(r"vboxnet(0|[1-9]\d{0,2})", name)
    if found is None or int(found[1]) > _LAST_NUMBER:
        raise ConfigurationError(
            f"{name!r} is not valid as the local interface",
            hint=f"expected vboxnet0 to vboxnet{_LAST_NUMBER}; it is set by --vm-local-interface",
        )
    return int(found[1])


def network_name(name: str) -> str:
    """What VirtualBox calls the network behind a host-only interface."""
    return f"HostInterfaceNetworking-{name}"


def host_only_interfaces(connection: Connection) -> dict[str, IHostNetworkInterface]:
    """The host-only interfaces that there are, by name."""
    from virtualbox.library import HostNetworkInterfaceType

    with trouble.translated("the host-only interfaces cannot be listed"):
        return {
            str(interface.name): interface
            for interface in connection.vbox.host.network_interfaces
            if interface.interface_type == HostNetworkInterfaceType.host_only
        }


def ensure_local(connection: Connection, name: str) -> None:
    """See to it that the host-only interface is there, with an address and a DHCP server.

    An interface that is there already keeps its address, and a DHCP server that serves keeps its range.
    Raises `ConfigurationError` for a name that cannot be, `DriverError` if it cannot be made.
    """
    number = interface_number(name)
    with connection.registry_lock():
        interface = host_only_interfaces(connection).get(name)
        if interface is None:
            interface = _create(connection, name, number)
        _ensure_dhcp(connection, name, _address(interface, number))


def _create(connection: Connection, name: str, number: int) -> IHostNetworkInterface:
    """Make interfaces until the wanted one is there: VirtualBox takes the next free number itself."""
    doing = f"the host-only interface {name} cannot be made"
    others: list[IHostNetworkInterface] = []
    try:
        for _ in range(number + 1):
            with trouble.translated(doing):
                interface, progress = connection.vbox.host.create_host_only_network_interface()
            others.append(interface)
            connection.wait(progress, Deadline(_CREATE_TIMEOUT_S), doing)
            if str(interface.name) == name:
                _address(interface, number)
                return others.pop()
    finally:
        for other in others:
            # One that could not be made has no attribute at all.
            with suppress(AttributeError, DriverError, WaitTimeoutError):
                _remove(connection, other)
    made = ", ".join(str(other.name) for other in others)
    raise DriverError(
        f"{doing}: VirtualBox made {made} instead", hint="use one of: VBoxManage list hostonlyifs"
    )


def _remove(connection: Connection, interface: IHostNetworkInterface) -> None:
    with trouble.translated("a host-only interface cannot be removed"):
        progress = connection.vbox.host.remove_host_only_network_interface(interface.id_p)
    connection.wait(progress, Deadline(_CREATE_TIMEOUT_S), "a host-only interface cannot be removed")


def _address(interface: IHostNetworkInterface, number: int) -> IPv4Interface:
    """The interface's own address; one is given to it if it has none."""
    name = str(interface.name)
    with trouble.translated(f"the host-only interface {name} cannot be given an address"):
        address, mask = str(interface.ip_address), str(interface.network_mask)
        if address in ("", "0.0.0.0"):
            address, mask = f"192.168.{_FIRST_NET + number}.1", _MASK
            interface.enable_static_ip_config(address, mask)
    try:
        return IPv4Interface(f"{address}/{mask}")
    except ValueError as error:
        raise DriverError(
            f"the host-only interface {name} has no address that can be used: {error}",
            hint=f"give it one: VBoxManage hostonlyif ipconfig {name} "
            f"--ip=192.168.{_FIRST_NET + number}.1 --netmask={_MASK}",
        ) from error


def _ensure_dhcp(connection: Connection, name: str, host: IPv4Interface) -> None:
    with trouble.translated(f"the DHCP server of {name} cannot be set up"):
        server = _dhcp_server(connection, network_name(name))
        if not _serves(server, host):
            own, low, high = leases(host)
            server.set_configuration(str(own), str(host.netmask), str(low), str(high))
        if not server.enabled:
            server.enabled = True


def _dhcp_server(connection: Connection, network: str) -> IDHCPServer:
    found = find_dhcp_server(connection, network)
    return found if found is not None else connection.vbox.create_dhcp_server(network)


def find_dhcp_server(connection: Connection, network: str) -> IDHCPServer | None:
    """The DHCP server of a network, None without one."""
    # VirtualBox's own search answers "invalid argument" when there is none.
    servers = connection.vbox.dhcp_servers
    return next((server for server in servers if str(server.network_name) == network), None)


def _serves(server: IDHCPServer, host: IPv4Interface) -> bool:
    """Whether the server's own address and its range lie in the interface's network."""
    addresses = (server.ip_address, server.lower_ip, server.upper_ip)
    if not all(addresses):
        return False
    own, low, high = (IPv4Address(str(address)) for address in addresses)
    inside = all(address in host.network for address in (own, low, high))
    return inside and own != host.ip and not low <= host.ip <= high


def leases(host: IPv4Interface) -> tuple[IPv4Address, IPv4Address, IPv4Address]:
    """The DHCP server's own address, and the first and last that it gives to guests.

    >>> [str(address) for address in leases(IPv4Interface("192.168.56.1/24"))]
    ['192.168.56.2', '192.168.56.101', '192.168.56.254']

    Raises `DriverError` for networks that are too small.
    """
    if host.network.prefixlen > 24:
        raise DriverError(
            f"the host-only network {host.network} is too small for a DHCP server of our making",
            hint="give the interface a /24 network, or set its DHCP server up with VBoxManage dhcpserver",
        )
    base = IPv4Address(int(host.ip) & ~0xFF)
    first, last = _LEASES
    if base + first <= host.ip <= base + last:
        first, last = _LEASES_BELOW
    own = base + (2 if host.ip == base + 1 else 1)
    return own, base + first, base + last
