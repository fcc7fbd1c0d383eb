"""What VirtualBox has registered, in a form that can be compared before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vmfest.drivers.virtualbox.connection import Connection


def registered(connection: Connection) -> dict[str, list[str]]:
    """VirtualBox's lists: machines, media, DHCP servers, host-only interfaces, and rules of NAT."""
    vbox = connection.vbox
    return {
        "machines": sorted(str(machine.name) for machine in vbox.machines),
        "media": sorted(
            str(medium.location) for medium in (*vbox.hard_disks, *vbox.dvd_images, *vbox.floppy_images)
        ),
        "dhcp": sorted(str(server.network_name) for server in vbox.dhcp_servers),
        "interfaces": sorted(str(interface.name) for interface in vbox.host.network_interfaces),
        "nat networks": sorted(str(network.network_name) for network in vbox.nat_networks),
        "nat rules": sorted(
            str(rule)
            for machine in vbox.machines
            for slot in range(2)
            for rule in machine.get_network_adapter(slot).nat_engine.redirects
        ),
    }
