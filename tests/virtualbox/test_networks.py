"""Network cards, NAT rules and host-only interfaces on a real VirtualBox."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vmfest import HardwareModel, NatRule
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import bridged, hostonly, nat, networks
from pytest_vmfest.errors import ConfigurationError, DriverError
from pytest_vmfest.specs import ImageModel, MachineSpec, PrivateNic

NIC = PrivateNic("net-a", "52:54:00:01:02:03", "10.0.0.1")
SPEC = MachineSpec("net-m", ImageModel("tiny", Path("/x.vdi"), "vdi"), HardwareModel("own", 256, 1))


@contextmanager
def machine(connection, settings, spec):
    """A registered machine with the network cards of a spec, locked."""
    from virtualbox.library import CleanupMode, LockType

    settings_file = str(settings.home / "m.vbox")
    com = connection.api.create_machine(connection.vbox, settings_file, spec.name, ["/vmfest"], "Linux_64")
    networks.configure(connection, settings, com, spec)
    connection.vbox.register_machine(com)
    session = connection.session()
    com.lock_machine(session, LockType.write)
    try:
        yield session.machine
    finally:
        session.unlock_machine()
        com.unregister(CleanupMode.unregister_only)
        Path(settings_file).unlink()


@pytest.fixture
def settings(tmp_path):
    """Settings with a store of the test's own."""
    return DriverSettings(tmp_path)


def cards(found):
    """What each card is plugged into, by slot."""
    slots = ((slot, found.get_network_adapter(slot)) for slot in range(networks.SLOTS))
    return {slot: str(card.attachment_type) for slot, card in slots if card.enabled}


def test_nat(connection, settings):
    """Slot 0 is behind NAT with a rule for SSH and the user's; private networks follow."""
    said = replace(SPEC.hardware, nic_type="virtio", mac="08:00:27:0a:0b:0c")
    said = replace(said, nat_rules=(NatRule("web", 80), NatRule("dns", 53, "udp", host_port=5353)))
    with machine(connection, settings, replace(SPEC, hardware=said, network="nat", nics=(NIC,))) as found:
        assert cards(found) == {0: "NAT", 1: "Internal"}
        first, second = (found.get_network_adapter(slot) for slot in (0, 1))
        assert first.mac_address == "0800270A0B0C"
        assert first._i.adapterType == connection.constants.NetworkAdapterType_Virtio
        assert second.mac_address == "525400010203"
        assert second.internal_network == networks.internal_name(settings.home, "net-a")
        rules = nat.rules(found, 0)
        assert set(rules) == {"vmfest-ssh", "vmfest-web", "dns"}
        assert (rules["dns"].protocol, rules["dns"].host_port, rules["dns"].guest_port) == ("udp", 5353, 53)
        assert rules["vmfest-ssh"].guest_port == 22
        assert nat.ssh_endpoint(found, 0) == rules["vmfest-ssh"].endpoint


def test_a_start_keeps_its_ports_as_far_as_they_are_free(connection, settings):
    """Ports of ours that somebody took are replaced, and all are held; the user's have to be free."""
    said = replace(SPEC.hardware, nat_rules=(NatRule("web", 80),))
    with machine(connection, settings, replace(SPEC, hardware=said, network="nat")) as found:
        before = nat.rules(found, 0)
        nat.set_rule(found, 0, nat.Redirect("own", "tcp", "127.0.0.1", 45678, "", 9))
        with nat.socket.create_server(("127.0.0.1", 45678), reuse_port=False):
            with pytest.raises(DriverError, match=r"'own': .*45678"):
                nat.Ports(found, 0)
        taken = before["vmfest-web"].endpoint
        with nat.socket.create_server((taken.host, taken.port)), nat.Ports(found, 0):
            held = nat.rules(found, 0)
            assert set(held) == {"vmfest-ssh", "vmfest-web", "own"}
            assert held["vmfest-ssh"] == before["vmfest-ssh"]
            assert held["vmfest-web"] != before["vmfest-web"]
            assert len({rule.host_port for rule in held.values()}) == 3
            for rule in held.values():
                with pytest.raises(OSError, match="in use"), nat.socket.socket() as other:
                    other.bind((rule.host, rule.host_port))


def test_internal_networks_fill_the_slots(connection, settings):
    """As many private networks as there are cards; one more is refused with the number."""
    nics = tuple(PrivateNic(f"n{i}", f"52:54:00:00:00:0{i}", f"10.0.{i}.1") for i in range(8))
    with machine(connection, settings, replace(SPEC, network="nat", nics=nics[:7])) as found:
        assert list(cards(found).values()) == ["NAT", *["Internal"] * 7]
    with pytest.raises(ConfigurationError, match=r"(?s)9 network cards.*leaves 7 for private networks"):
        networks.configure(connection, settings, None, replace(SPEC, network="nat", nics=nics))


def test_bridged(connection, settings):
    """An interface that VirtualBox lists is taken; a wrong name lists the right ones."""
    known = bridged.bridged_interfaces(connection)
    if not known:
        pytest.skip("this host has no interface to bridge to")
    chosen = replace(settings, bridged_interface=known[-1])
    with machine(connection, chosen, replace(SPEC, network="bridged")) as found:
        assert cards(found) == {0: "Bridged"}
        assert found.get_network_adapter(0).bridged_interface == known[-1]
    wrong = replace(settings, bridged_interface="wifi7")
    with pytest.raises(ConfigurationError, match=f"(?s)'wifi7' is not known.*{known[0]}"):
        networks.configure(connection, wrong, None, replace(SPEC, network="bridged"))


def test_a_dhcp_server_is_completed(connection, settings):
    """One that is off or serves another network is put right, and one that serves is left alone."""
    network = hostonly.network_name("vboxnet7")
    try:
        for _ in range(2):
            hostonly._ensure_dhcp(connection, "vboxnet7", hostonly.IPv4Interface("192.168.63.1/24"))
            server = hostonly.find_dhcp_server(connection, network)
            assert server.enabled
            assert (server.ip_address, server.lower_ip, server.upper_ip) == (
                "192.168.63.2",
                "192.168.63.101",
                "192.168.63.254",
            )
            server.enabled = False
        server.set_configuration("192.168.63.9", "255.255.255.0", "192.168.63.10", "192.168.63.20")
        hostonly._ensure_dhcp(connection, "vboxnet7", hostonly.IPv4Interface("192.168.63.1/24"))
        assert server.lower_ip == "192.168.63.10"
    finally:
        connection.vbox.remove_dhcp_server(hostonly.find_dhcp_server(connection, network))


def test_no_host_only_interface_without_the_module(connection, settings):
    """Where it cannot be made, the error says so with VirtualBox's words, and which module to load."""
    if Path("/dev/vboxnetctl").exists():
        pytest.skip("here it can")
    with pytest.raises(DriverError, match=r"(?s)vboxnet0 cannot be made: .*vboxnetctl.*modprobe vboxnetadp"):
        networks.configure(connection, settings, None, SPEC)
    assert hostonly.host_only_interfaces(connection) == {}


@pytest.mark.usefixtures("running")
def test_local_and_internal(connection, settings):
    """Slot 0 is host-only; the way out is behind slot 1, and in mode internal there is none."""
    for mode, expected in {"local": {0: "HostOnly", 1: "NAT"}, "internal": {0: "HostOnly"}}.items():
        with machine(connection, settings, replace(SPEC, network=mode)) as found:
            assert cards(found) == expected
            assert found.get_network_adapter(0).host_only_interface == "vboxnet0"
