"""VirtualBox's networks, as far as they can be judged without a VirtualBox."""

import os
import socket
import time
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface
from types import SimpleNamespace

import pytest

from pytest_vmfest.devices import NatRule
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import address, hostonly, nat
from pytest_vmfest.drivers.virtualbox.address import neighbour
from pytest_vmfest.drivers.virtualbox.bridged import choose, default_route
from pytest_vmfest.drivers.virtualbox.hostonly import interface_number, leases
from pytest_vmfest.drivers.virtualbox.networks import (
    check_networks,
    configure,
    create_network,
    internal_name,
    is_host_only,
    nat_slot,
    remove_network,
)
from pytest_vmfest.errors import ConfigurationError, DriverError, NotSupportedError
from pytest_vmfest.specs import HardwareModel, ImageModel, MachineSpec, PrivateNic

NICS = (PrivateNic("net-a", "52:54:00:00:00:01", "10.0.0.1"),)


# --- host-only interfaces --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("vboxnet0", 0), ("vboxnet7", 7), ("vboxnet199", 199)])
def test_numbers_of_host_only_interfaces(name, number):
    """The number says which network the interface gets."""
    assert interface_number(name) == number


@pytest.mark.parametrize("name", ["eth0", "vboxnet", "vboxnet01", "vboxnet200", "vboxnet-1", "xvboxnet0"])
def test_what_is_no_host_only_interface(name):
    """Other names are refused with those that can be, and where they are set."""
    with pytest.raises(ConfigurationError, match=r"(?s)vboxnet0 to vboxnet199.*--vm-local-interface"):
        interface_number(name)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.168.56.1/24", ["192.168.56.2", "192.168.56.101", "192.168.56.254"]),
        ("10.1.2.200/16", ["10.1.2.1", "10.1.2.3", "10.1.2.99"]),
    ],
)
def test_leases_leave_the_hosts_address_out(host, expected):
    """The DHCP server's address and its range lie in the interface's network, beside its own address."""
    assert [str(address) for address in leases(IPv4Interface(host))] == expected


def test_too_small_a_host_only_network():
    """A network without room for the range is left to the user."""
    with pytest.raises(DriverError, match=r"(?s)192\.168\.56\.0/25 is too small.*VBoxManage dhcpserver"):
        leases(IPv4Interface("192.168.56.1/25"))


class Interface:
    """A host-only interface as VirtualBox tells of it."""

    def __init__(self, name, address="192.168.56.1", mask="255.255.255.0"):
        self.name = self.id_p = name
        self.ip_address, self.network_mask = address, mask


def test_an_interface_whose_making_failed_is_removed(monkeypatch):
    """Those that were made on the way to the wanted one do not stay either."""
    removed = []
    made = iter([Interface("vboxnet0"), Interface("vboxnet1")])
    waits = iter([None, DriverError("it failed")])

    def wait(*_):
        if error := next(waits):
            raise error

    host = SimpleNamespace(create_host_only_network_interface=lambda: (next(made), None))
    connection = SimpleNamespace(vbox=SimpleNamespace(host=host), wait=wait)
    monkeypatch.setattr(hostonly, "_remove", lambda _, interface: removed.append(interface.name))
    with pytest.raises(DriverError, match="it failed"):
        hostonly._create(connection, "vboxnet1", 1)
    assert removed == ["vboxnet0", "vboxnet1"]


def test_a_host_only_interface_without_a_mask():
    """The error says how to give it one."""
    with pytest.raises(
        DriverError, match=r"(?s)vboxnet1 has no address.*ipconfig vboxnet1 .*192\.168\.57\.1"
    ):
        hostonly._address(Interface("vboxnet1", mask=""), 1)


@pytest.mark.parametrize(
    ("left_s", "heard", "expected"), [(60, False, True), (-60, False, False), (-60, True, True)]
)
def test_leases(monkeypatch, tmp_path, left_s, heard, expected):
    """One that is over counts if its guest answers at the address: it was halted, and believes to have it."""
    table, mac = tmp_path / "arp", "080027010203"
    flags = "0x2" if heard else "0x0"
    table.write_text(f"IP address\n127.0.0.9 0x1 {flags} 08:00:27:01:02:03 * vboxnet0\n")
    monkeypatch.setattr(address.neighbour, "__defaults__", (table,))
    lease = ("127.0.0.9", "acked", 0, time.time() + left_s)
    server = SimpleNamespace(
        network_name=hostonly.network_name("vboxnet0"),
        _i=SimpleNamespace(findLeaseByMAC=lambda *_: lease),
    )
    connection = SimpleNamespace(vbox=SimpleNamespace(dhcp_servers=[server]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        monkeypatch.setattr(address, "_DISCARD_PORT", _bound_port(guest))
        guest.settimeout(5)
        assert address._lease(connection, "vboxnet0", mac) == ("127.0.0.9" if expected else None)
        if left_s < 0:
            assert guest.recv(1) == b""


def _bound_port(guest):
    guest.bind(("127.0.0.9", 0))
    return guest.getsockname()[1]


# --- bridged ---------------------------------------------------------------------------------------

ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth1\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth2\t00000000\t0100A8C0\t0002\t0\t0\t1\t00000000\t0\t0\t0
"""


def test_the_default_route(tmp_path):
    """Of the default routes that are up, the one with the lowest metric counts."""
    table = tmp_path / "route"
    table.write_text(ROUTES)
    assert default_route(table) == "eth1"
    table.write_text("".join(ROUTES.splitlines(keepends=True)[:2]))
    assert default_route(table) is None
    assert default_route(tmp_path / "none") is None


def test_the_bridged_interface():
    """What is configured wins over the default route's."""
    assert choose("wlan0", ["eth0", "wlan0"], "eth0") == "wlan0"
    assert choose(None, ["eth0", "wlan0"], "eth0") == "eth0"


@pytest.mark.parametrize(
    ("wanted", "route", "expected"),
    [
        ("wifi", "eth0", "'wifi' is not known"),
        (None, "tun0", "cannot bridge to tun0"),
        (None, None, "no default"),
    ],
)
def test_a_wrong_bridged_interface_lists_the_right_ones(wanted, route, expected):
    """The error says what is wrong, and what --vm-bridged-interface can be set to."""
    with pytest.raises(ConfigurationError, match=f"(?s){expected}.*--vm-bridged-interface.*eth0, wlan0"):
        choose(wanted, ["eth0", "wlan0"], route)


def test_neighbours(tmp_path):
    """An address is known by its MAC once the neighbour has answered."""
    table = tmp_path / "arp"
    table.write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        "192.168.0.7      0x1         0x0         08:00:27:01:02:03     *        eth0\n"
        "192.168.0.8      0x1         0x2         08:00:27:01:02:03     *        eth0\n"
        "192.168.0.9      0x1         0x2         08:00:27:01:02:04     *        eth0\n"
    )
    assert neighbour("080027010203", table) == "192.168.0.8"
    assert neighbour("0800270102FF", table) is None
    assert neighbour("080027010203", tmp_path / "none") is None


# --- modes and private networks --------------------------------------------------------------------


def test_modes():
    """Which card is behind NAT, and in which modes the host reaches the guest by its own interface."""
    assert {mode: nat_slot(mode) for mode in ("local", "nat", "bridged", "internal")} == {
        "local": 1,
        "nat": 0,
        "bridged": None,
        "internal": None,
    }
    assert [mode for mode in ("local", "nat", "bridged", "internal") if is_host_only(mode)] == [
        "local",
        "internal",
    ]


@pytest.mark.parametrize("network", ["nat", "local"])
def test_ports_of_another_host(tmp_path, network):
    """They cannot be chosen from here; it is said before anything is changed, and what can be had instead."""
    hardware = HardwareModel("usual", 256, 1, nat_rules=(NatRule("web", 80),) if network == "local" else ())
    spec = MachineSpec("m", ImageModel("x", tmp_path / "x.img", "raw"), hardware, network)
    settings = DriverSettings(tmp_path, url="http://192.0.2.1:18083/")
    with pytest.raises(NotSupportedError, match=r"(?s)http://192\.0\.2\.1:18083/ is on another.*bridged"):
        configure(None, settings, None, spec)


def test_private_networks(tmp_path):
    """A network is there from its creation to its removal, each of which can be repeated."""
    with pytest.raises(DriverError, match="no private network named 'net-a'"):
        check_networks(tmp_path, NICS)
    for _ in range(2):
        create_network(tmp_path, "net-a")
        check_networks(tmp_path, NICS)
    for _ in range(2):
        remove_network(tmp_path, "net-a")
        with pytest.raises(DriverError, match="no private network named 'net-a'"):
            check_networks(tmp_path, NICS)


def test_private_networks_of_two_stores_are_two(tmp_path):
    """VirtualBox knows a network by its name only, whichever store it belongs to."""
    assert internal_name(tmp_path / "a", "net") != internal_name(tmp_path / "b", "net")


def test_the_name_of_a_private_network_is_no_path(tmp_path):
    """A name that would lead out of the folder is refused."""
    with pytest.raises(ConfigurationError, match="not a host name"):
        create_network(tmp_path, "../x")


# --- NAT -------------------------------------------------------------------------------------------

RULE = nat.Redirect("vmfest-x", "tcp", "127.0.0.1", 0, "", 80)


@contextmanager
def bound(port, *, reuse=True, kind=socket.SOCK_STREAM):
    """A socket of somebody's at a loopback port, listening if it can."""
    with socket.socket(socket.AF_INET, kind) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        yield


def test_a_held_port_is_there_for_the_machine():
    """VirtualBox, which asks to share it, can listen where a port is held; others are refused."""
    with nat._held_port(RULE) as port:
        with pytest.raises(OSError, match="in use"), bound(port, reuse=False):
            pass
        with bound(port), pytest.raises(OSError, match="in use"), bound(port):
            pass


def test_held_ports_differ():
    """Many at once get a port each."""
    with ExitStack() as stack:
        assert len({stack.enter_context(nat._held_port(RULE)) for _ in range(50)}) == 50


def test_a_udp_port_is_let_go():
    """VirtualBox does not ask to share it before it has it."""
    udp = nat.Redirect("vmfest-x", "udp", "127.0.0.1", 0, "", 53)
    with nat._held_port(udp) as port, bound(port, reuse=False, kind=socket.SOCK_DGRAM):
        assert nat._opened(nat.Redirect("vmfest-x", "udp", "127.0.0.1", port, "", 53), os.getpid())


def test_a_port_of_the_users_that_is_taken():
    """The error names the rule and the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = nat.Redirect("web", "tcp", "127.0.0.1", server.getsockname()[1], "", 80)
        with pytest.raises(DriverError, match=rf"(?s)'web': 127\.0\.0\.1:{taken.host_port} .*host_port"):
            with nat._held_port(taken):
                pass


def test_who_listens(monkeypatch):
    """A rule is open when the machine's own process listens at its port, and no other's."""
    monkeypatch.setattr(nat, "_OPEN_TIMEOUT_S", 0.0)
    with nat._held_port(RULE) as port:
        rule = nat.Redirect("vmfest-x", "tcp", "127.0.0.1", port, "", 80)
        assert not nat._opened(rule, os.getpid())
        with bound(port):
            assert nat._opened(rule, os.getpid())
            assert not nat._opened(rule, os.getppid())


def test_rules_in_virtualboxs_words():
    """A rule is read as VirtualBox lists it; those that are called vmfest-… have a port of our choice."""
    assert nat.parse("dns,0,0.0.0.0,5353,10.0.2.15,53") == nat.Redirect(
        "dns", "udp", "0.0.0.0", 5353, "10.0.2.15", 53
    )
    assert not nat.parse("dns,0,0.0.0.0,5353,10.0.2.15,53").is_ours
    assert nat.parse("vmfest-ssh,1,127.0.0.1,2222,,22").is_ours
