"""What a snapshot is called inside the disk file."""

import pytest

from pytest_vmfest.drivers.qemu.snapshots import SAVED_TAG, Mode, Snapshot, parse_tags


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
