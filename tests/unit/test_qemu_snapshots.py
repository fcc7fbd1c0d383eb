"""What a snapshot is called inside the disk file."""

import pytest

from pytest_vmfest.drivers.qemu.snapshots import SAVED_TAG, Mode, Snapshot, check_free, find, parse_tags
from pytest_vmfest.errors import ConfigurationError, MachineStateError


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", ["clean", "1", "a:b", "off:x", "-f", SAVED_TAG, "ünï"])
def test_a_tag_tells_name_and_state(name, mode):
    """Whatever the name, it and the machine's state come back from the tag, and no tag is a number."""
    snapshot = Snapshot(name, mode)
    assert parse_tags([snapshot.tag]) == {name: snapshot}
    assert snapshot.tag != SAVED_TAG
    assert not snapshot.tag.isdigit()
    assert not snapshot.tag.startswith("-")


def test_only_ours_are_listed_in_their_order():
    """The saved state, and what others have put into an image, are passed over."""
    tags = ["off:b", SAVED_TAG, "vendor", "vendor:x", "running:a"]
    assert list(parse_tags(tags)) == ["b", "a"]


@pytest.mark.parametrize("name", ["", "a\nb", "\0", "x" * 201, "ü" * 101])
def test_names_that_cannot_be(name):
    """Empty, unprintable or too long names are refused."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a snapshot"):
        check_free(name, {}, "m")


def test_taken_and_missing_names():
    """The errors name machine and snapshot, and what there is."""
    known = parse_tags(["off:one", "running:two"])
    with pytest.raises(MachineStateError, match="machine 'm' has a snapshot named 'one' already"):
        check_free("one", known, "m")
    check_free("three", known, "m")
    assert find("two", known, "m").mode is Mode.RUNNING
    with pytest.raises(MachineStateError, match=r"(?s)no snapshot named 'three'.*one, two"):
        find("three", known, "m")
    with pytest.raises(MachineStateError, match="it has none"):
        find("three", {}, "m")
