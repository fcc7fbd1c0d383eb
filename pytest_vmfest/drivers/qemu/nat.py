"""The user-mode network on slot 0: ports of this host's loopback that lead into the guest.

QEMU chooses the host's ports itself, so none can be taken by another between choosing and using it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.qemu.command import NAT_ID
from pytest_vmfest.errors import DriverError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.qemu.monitor import Monitor

LOOPBACK = "127.0.0.1"
SSH_PORT = 22

# "  TCP[HOST_FORWARD]  13       127.0.0.1 40377       10.0.2.15    22     0     0"
_FORWARD = re.compile(r"^\s*TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s", re.MULTILINE)


def parse_forwards(text: str) -> dict[int, int]:
    """Guest ports and the host ports that lead to them, in the answer to ``info usernet``."""
    return {
        int(guest_port): int(host_port)
        for address, host_port, guest_port in _FORWARD.findall(text)
        if address == LOOPBACK
    }


def forwards(monitor: Monitor) -> dict[int, int]:
    """Guest ports that can be reached now, each with the loopback port that leads to it."""
    return parse_forwards(monitor.human("info usernet"))


def add_forward(monitor: Monitor, guest_port: int) -> int:
    """The loopback port that leads to ``guest_port``; it is opened if there is none yet."""
    known = forwards(monitor)
    if guest_port not in known:
        said = monitor.human(f"hostfwd_add {NAT_ID} tcp:{LOOPBACK}:0-:{guest_port}")
        known = forwards(monitor)
        if guest_port not in known:
            raise DriverError(f"QEMU opened no way to port {guest_port} of the guest: {said.strip()}")
    return known[guest_port]
