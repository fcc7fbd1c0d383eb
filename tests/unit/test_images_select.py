"""Choosing an image by a template."""

from pathlib import Path

import pytest

from pytest_vmfest.errors import ConfigurationError, ImageNotFoundError
from pytest_vmfest.images.select import select, version_key
from pytest_vmfest.specs import ImageModel


def model(name, os_family=None, os_version=None, **more):
    """An image model with no disk behind it."""
    disk = Path(f"{name}.qcow2")
    return ImageModel(name, disk, "qcow2", os_family=os_family, os_version=os_version, **more)


MODELS = [
    model("ubuntu-10.4", "ubuntu", "10.4", packager="apt"),
    model("ubuntu-10.10", "ubuntu", "10.10", packager="apt", description="Maverick, 64 bit"),
    model("ubuntu-10.10-b", "ubuntu", "10.10", packager="apt", os_64_bit=False),
    model("debian-12", "debian", "12", packager="apt"),
    model("centos", "centos", "9", packager="dnf"),
    model("bare"),
]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ({"os_family": "debian"}, "debian-12"),
        ({"os_family": "ubuntu"}, "ubuntu-10.10"),
        ({"os_family": "ubuntu", "os_64_bit": False}, "ubuntu-10.10-b"),
        ({"os_family": "ubuntu", "os_version": "10.4"}, "ubuntu-10.4"),
        ({"packager": "apt"}, "debian-12"),
        ({"os_version_matches": r"10\..*"}, "ubuntu-10.10"),
        ({"name_matches": "ubuntu-.*4"}, "ubuntu-10.4"),
        ({"description_matches": "(?i)maverick.*"}, "ubuntu-10.10"),
        ({"packager_matches": "apt|dnf", "os_family_matches": "c.*"}, "centos"),
    ],
)
def test_the_newest_fitting_model_is_taken(template, name):
    """All keys have to fit; the newest version wins, then the first name, in whatever order they come."""
    assert select(MODELS, template).name == name
    assert select(reversed(MODELS), template).name == name


def test_patterns_match_the_whole_value():
    """A regular expression that fits a part of the value is not enough."""
    with pytest.raises(ImageNotFoundError):
        select(MODELS, {"os_family_matches": "ubun"})


def test_no_match_tells_why_each_was_passed_over():
    """The error lists every installed model with every reason, what was asked, and what to do."""
    with pytest.raises(ImageNotFoundError) as caught:
        select(MODELS, {"os_family": "debian", "os_version_matches": "1[13]"}, hint="add one")
    message = str(caught.value)
    assert "os_family='debian', os_version_matches='1[13]'" in message
    assert "debian-12: os_version is '12', which '1[13]' does not match" in message
    assert "centos: os_family is 'centos', not 'debian'; os_version is '9'" in message
    assert "bare: os_family is not known; os_version is not known" in message
    assert message.count("\n    ") == len(MODELS)
    assert message.endswith("add one")


def test_nothing_is_installed():
    """With no models at all, the error says that."""
    with pytest.raises(ImageNotFoundError, match="no image is installed"):
        select([], {"os_family": "debian"})


def test_unknown_keys_are_errors():
    """A misspelt key is no template that fits anything."""
    with pytest.raises(ConfigurationError, match="os_famly"):
        select(MODELS, {"os_famly": "debian"})


def test_order_of_versions():
    """Numbers count as numbers, a pre-release is before its release, and no version before any."""
    ascending = [None, "sid", "9", "10.4", "10.10", "12-rc1", "12", "12.1"]
    shuffled = [ascending[i] for i in (4, 2, 7, 0, 5, 1, 6, 3)]
    assert sorted(shuffled, key=version_key) == ascending
