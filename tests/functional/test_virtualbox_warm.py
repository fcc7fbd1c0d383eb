"""VirtualBox's machines that resume from a template: nobody's twins, and reached like those that boot."""

import os
import signal

import pytest
from clocks import lateness
from runs import until

from pytest_vmfest import Server
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.warm.templates import templates_in

pytestmark = pytest.mark.virtualbox

CLOCK_S = 0.05
GONE_S = 120
MAC = "cat /sys/class/net/eth{}/address"


@pytest.fixture(autouse=True)
def _warm(monkeypatch):
    """Also where all other tests are to boot their machines."""
    monkeypatch.delenv("VMFEST_COLD", raising=False)


@pytest.fixture
def server(own_home):
    """A server whose store has no template yet."""
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


def test_a_run_killed_while_it_copies_the_disk(begin, pytester, own_home, scanned):
    """Nobody trusts what is there by then, and VirtualBox has nothing of it; the next run makes it anew."""
    pytester.makepyfile("def test_it(vm_instance): assert 'resume' in vm_instance.timings")
    run = begin()
    until(lambda: list(own_home.glob("templates/*/disk.vdi")), run, "the disk to be copied")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    scanned.nothing_is_left(within_s=GONE_S)
    disks = connect(DriverSettings(own_home)).vbox.hard_disks
    assert [disk.location for disk in disks if str(own_home) in disk.location] == []
    assert [template.facts() for template in templates_in(own_home)] == [None]
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert [template.facts() is not None for template in templates_in(own_home)] == [True]
