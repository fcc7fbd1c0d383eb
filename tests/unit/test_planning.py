"""From requests to plans of machines."""

from pathlib import Path

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.planning import plan_group, plan_machine
from pytest_vmfest.request import VmRequest
from pytest_vmfest.specs import HardwareModel, ImageModel

IMAGE = ImageModel("tiny", Path("/store/tiny.qcow2"), "qcow2")
CARD = HardwareModel("card", 256, 1, nic_type="e1000", mac="08:00:27:01:02:03")


def test_a_card_of_a_certain_address_is_one_machines():
    """A group of several cannot have it, a group of one and a single machine can."""
    with pytest.raises(ConfigurationError, match="'card' has a mac, which 2 nodes cannot share"):
        plan_group(VmRequest(hardware=CARD, nodes=2), IMAGE, "net", {})
    (plan,) = plan_group(VmRequest(hardware=CARD, nodes=1), IMAGE, "net", {})
    assert plan.spec.hardware == CARD


def test_minimums_keep_the_rest_of_the_hardware():
    """A marker's min_ram_mib raises the size of the hardware model and drops nothing that it says."""
    spec = plan_machine(VmRequest(hardware=CARD, min_ram_mib=512), IMAGE, "m", {})
    assert (spec.hardware.memory_mib, spec.hardware.mac) == (512, CARD.mac)
