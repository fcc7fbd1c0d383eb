"""Guests with a real operating system on the QEMU driver: both ways to boot, shutdown, private networks."""

from dataclasses import replace

import pytest
from labs import QemuLab, opened

from pytest_vmfest import ssh
from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.guest import Introduction
from pytest_vmfest.specs import HARDWARE, PrivateNic
from pytest_vmfest.waiting import Deadline

pytestmark = pytest.mark.functional

BOOT_TIMEOUT_S = 240


class TinyLab(QemuLab):
    """The QEMU driver with the smallest guest that has SSH."""

    def connect(self, name):
        """A new connection into the guest."""
        deadline = Deadline(BOOT_TIMEOUT_S)
        endpoint = self.driver.endpoint(name, deadline)
        return ssh.connect(endpoint, self.image.login, deadline, watch=lambda: None)

    def ask(self, name, script):
        """What a command in the guest prints; it has to succeed."""
        remote = self.connect(name)
        try:
            done = remote.execute(script, input=None, deadline=self.deadline)
        finally:
            remote.close()
        assert done.exit_status == 0, done
        return done.stdout.decode().strip()


@pytest.fixture
def tiny_lab(tmp_path, vm_server):
    """A lab on the image `tiny` of the user's store."""
    with opened(TinyLab, tmp_path) as lab:
        lab.image = vm_server.images.resolve("tiny")
        yield lab


@pytest.mark.parametrize("way", ["kernel", "boot loader"])
def test_boot_and_shutdown(tiny_lab, way):
    """Both ways end in a guest that answers by SSH and heeds the power button."""
    if way == "boot loader":
        tiny_lab.image = replace(tiny_lab.image, direct_boot=None)
    tiny_lab.driver.create(tiny_lab.spec(hardware=HARDWARE["micro"]))
    tiny_lab.driver.start("m", tiny_lab.deadline)
    assert tiny_lab.ask("m", "uname -s") == "Linux"
    tiny_lab.driver.stop("m", tiny_lab.deadline)
    assert tiny_lab.driver.state("m") is MachineState.POWERED_OFF
    assert "reboot: Power down" in tiny_lab.driver.console("m")


def test_a_private_network_and_snapshots_on_it(tiny_lab):
    """Machines on one network reach each other, also after a live revert; others do not see them."""
    networks = {"a-0": "a", "a-1": "a", "b-0": "b"}
    for network in ("a", "b"):
        tiny_lab.driver.create_network(network)
    for number, (name, network) in enumerate(networks.items()):
        nic = PrivateNic(network, f"52:54:00:00:00:0{number}", f"10.77.0.1{number}")
        tiny_lab.driver.create(tiny_lab.spec(name, hardware=HARDWARE["micro"], nics=(nic,)))
        tiny_lab.driver.start(name, tiny_lab.deadline)
        tiny_lab.ask(name, Introduction(name, (nic,)).script())
    tiny_lab.driver.take_snapshot("a-1", "here", tiny_lab.deadline)
    tiny_lab.ask("a-0", "ping -c 1 -W 20 10.77.0.11")
    tiny_lab.driver.revert("a-1", "here", tiny_lab.deadline)
    tiny_lab.ask("a-0", "ping -c 1 -W 20 10.77.0.11")
    tiny_lab.ask("a-1", "ping -c 1 -W 20 10.77.0.10")
    tiny_lab.ask("b-0", "! ping -c 1 -W 2 10.77.0.10")
    for name in networks:
        tiny_lab.driver.destroy(name)
    for network in ("a", "b"):
        tiny_lab.driver.remove_network(network)
