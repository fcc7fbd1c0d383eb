"""Which interface of this host the machines in network mode bridged share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.drivers.virtualbox.connection import Connection

_ROUTES = Path("/proc/net/route")


def bridged_interfaces(connection: Connection) -> list[str]:
    """The names that VirtualBox takes, as ``VBoxManage list bridgedifs`` shows them."""
    from virtualbox.library import HostNetworkInterfaceType

    with trouble.translated("the bridged interfaces cannot be listed"):
        return [
            str(interface.name)
            for interface in connection.vbox.host.network_interfaces
            if interface.interface_type == HostNetworkInterfaceType.bridged
        ]


def bridged_interface(connection: Connection, settings: DriverSettings) -> str:
    """The configured interface, else the one that the default route goes through.

    Raises `ConfigurationError` that lists the right names.
    """
    return choose(settings.bridged_interface, bridged_interfaces(connection), default_route())


def choose(wanted: str | None, known: list[str], route: str | None) -> str:
    """The interface that is ``wanted``, else that of the default ``route``, if VirtualBox knows it."""
    name = wanted or route
    if name in known:
        return name
    if wanted:
        what = f"the bridged interface {wanted!r} is not known to VirtualBox"
    elif route:
        what = f"VirtualBox cannot bridge to {route}, through which this host's default route goes"
    else:
        what = "this host has no default route, whose interface could be bridged"
    raise ConfigurationError(
        what, hint=f"set --vm-bridged-interface to one of: {', '.join(known)}" if known else ""
    )


def default_route(routes: Path = _ROUTES) -> str | None:
    """The interface of the default route with the lowest metric; None without one."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    # Interface, destination, gateway, flags, references, use, metric, mask ...
    ways = [(int(fields[6]), fields[0]) for fields in map(str.split, lines) if _is_default(fields)]
    return min(ways)[1] if ways else None


def _is_default(fields: list[str]) -> bool:
    is_up = 1
    return len(fields) > 7 and fields[1] == fields[7] == "00000000" and bool(int(fields[3], 16) & is_up)
