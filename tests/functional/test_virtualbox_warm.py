"""VirtualBox's machines that resume from a template: nobody's twins, and reached like those that boot."""

import pytest
from clocks import lateness

from pytest_vmfest import Server
from pytest_vmfest.warm.templates import templates_in

pytestmark = pytest.mark.virtualbox

CLOCK_S = 0.05
MAC = "cat /sys/class/net/eth{}/address"


@pytest.fixture
def server(own_home, monkeypatch):
    """A server whose store has no template yet, also where all other tests are to boot their machines."""
    monkeypatch.delenv("VMFEST_COLD", raising=False)
    with Server("virtualbox", home=own_home) as server:
        server.own({"test": "warm"})
        yield server
        assert server.driver.machines() == []


def test_a_group_resumes(server):
    """Each node has its own addresses, name and random numbers, and the right time; a reboot keeps that."""
    with server.launch_group(2, image="tiny") as group:
        nodes = list(group.values())
        assert all("resume" in node.timings for node in nodes)
        for question in ("head -c 32 /dev/urandom | od -An -tx1", MAC.format(0), MAC.format(2), "hostname"):
            answers = [node.check_output(question) for node in nodes]
            assert len(set(answers)) == len(nodes), question
            assert all(answers)
        for node in nodes:
            assert node.instance.endpoint().host.startswith("192.168.56.")
            late_s, error_s = lateness(node)
            assert abs(late_s) < CLOCK_S + error_s, node
        first, second = nodes
        first.check_output(f"ping -c 1 -w 20 {second.name}")
        before = [first.check_output(MAC.format(slot)) for slot in (0, 2)]
        address = first.instance.endpoint()
        first.reboot()
        assert [first.check_output(MAC.format(slot)) for slot in (0, 2)] == before
        assert first.instance.endpoint() == address
        first.check_output(f"ping -c 1 -w 20 {second.name}")
    [template] = templates_in(server.home)
    assert template.facts().driver == "virtualbox"


def test_behind_nat(server):
    """There each has a way of its own, and can keep the address of its card."""
    for _ in range(2):
        with server.launch(image="tiny", network="nat") as node:
            assert "resume" in node.timings
            assert node.run("cat /run/mine").stdout == ""
            node.check_output("echo mine > /run/mine")
            assert "vmfest: ready" in node.console()
