"""Specs and requests. Wrong marker arguments are tested where users see them, in the plugin's tests."""

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.request import VmRequest, node_names
from pytest_vmfest.specs import HARDWARE, HardwareModel, check_image_name, check_label, hardware_model


def test_sizes_are_as_documented():
    """The four hardware models have the documented memory and CPUs."""
    sizes = {name: (model.memory_mib, model.cpus) for name, model in HARDWARE.items()}
    assert sizes == {"micro": (512, 1), "small": (1024, 1), "medium": (2048, 2), "large": (4096, 4)}


def test_minimums_raise_and_never_lower():
    """min_ram_mib and min_cores only ever raise a hardware model."""
    model = HARDWARE["medium"]
    assert model.at_least(4000, 1) == HardwareModel("medium", 4000, 2)
    assert model.at_least(100, None) == model


def test_own_hardware_models_pass_through_and_nonsense_does_not():
    """A HardwareModel of the user's own is taken as it is; an impossible one cannot be made."""
    own = HardwareModel("own", 300, 3)
    assert hardware_model(own) is own
    with pytest.raises(ConfigurationError, match="too small"):
        HardwareModel("none", 0, 1)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "x" * 64, "a\n"])
def test_what_cannot_be_a_host_name(name):
    """Names that RFC 1123 does not allow as a label are refused."""
    with pytest.raises(ConfigurationError, match="not a host name"):
        check_label(name, "machine name")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 129])
def test_what_cannot_be_an_image_name(name):
    """Names that would be no single safe folder name are refused."""
    with pytest.raises(ConfigurationError, match="cannot be the name of an image"):
        check_image_name(name)


def test_node_names_follow_roles_and_numbers():
    """Nodes are named by role and number; a bare number means the role `node`."""
    assert node_names({"db": 1, "web": 2}) == (("db", "db-0"), ("web", "web-0"), ("web", "web-1"))
    assert node_names(1) == (("node", "node-0"),)


def test_requests_merge_key_by_key():
    """What the upper request says wins; where it is silent the lower one holds."""
    lower = VmRequest(image="a", hardware="small", nodes=2)
    assert lower.merged(VmRequest(image="b", min_cores=2)) == VmRequest(
        image="b", hardware="small", nodes=2, min_cores=2
    )


def test_false_is_something_said():
    """permanent=False in a closer marker wins over permanent=True further out."""
    assert VmRequest(permanent=True).merged(VmRequest(permanent=False)).permanent is False


def test_a_list_of_images_is_several_and_a_template_is_one():
    """Only lists stand for several images."""
    assert VmRequest(image=["a", "b"]).images == ("a", "b")
    assert VmRequest(image={"os_family": "debian"}).images == ({"os_family": "debian"},)
    assert VmRequest().images == ()
