"""Reading QEMU's list of forwarded ports, and adding to it."""

import pytest

from pytest_vmfest.drivers.qemu.nat import add_forward, parse_forwards
from pytest_vmfest.errors import DriverError

# As QEMU 7.2 prints it; with connections under way, and a datagram socket.
USERNET = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   21       127.0.0.1 37444       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  13       127.0.0.1 40377       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  19       127.0.0.1 35799       10.0.2.15  8080     0     0
  TCP[HOST_FORWARD]  20               * 12345       10.0.2.15  9999     0     0
  UDP[236 sec]       25       10.0.2.15 51365        10.0.2.3    53     0     0
"""


class Monitor:
    """Stands for a monitor: prints a list, which a command may lengthen."""

    def __init__(self, answer=""):
        self.text = USERNET
        self.answer = answer
        self.commands = []

    def human(self, command):
        if command == "info usernet":
            return self.text
        self.commands.append(command)
        if not self.answer:
            self.text += "  TCP[HOST_FORWARD]  30       127.0.0.1 40000       10.0.2.15    80     0     0\n"
        return self.answer


def test_only_forwards_on_loopback_count():
    """Connections, datagrams and what is bound elsewhere are passed over."""
    assert parse_forwards(USERNET) == {22: 40377, 8080: 35799}
    assert parse_forwards("") == {}


def test_a_way_that_is_open_is_used():
    """Nothing is added for a port that can be reached already."""
    monitor = Monitor()
    assert add_forward(monitor, 8080) == 35799
    assert monitor.commands == []


def test_a_new_way():
    """QEMU chooses the port, on loopback."""
    monitor = Monitor()
    assert add_forward(monitor, 80) == 40000
    assert monitor.commands == ["hostfwd_add net0 tcp:127.0.0.1:0-:80"]


def test_a_way_that_cannot_be_opened():
    """What QEMU says stands in the error."""
    with pytest.raises(DriverError, match="port 80 of the guest: could not set up host forwarding"):
        add_forward(Monitor("could not set up host forwarding rule\r\n"), 80)
