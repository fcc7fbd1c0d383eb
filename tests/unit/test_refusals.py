"""What every driver refuses, in the same words."""

import pytest

from pytest_vmfest.drivers.refusals import check_snapshot_name, find_snapshot
from pytest_vmfest.errors import ConfigurationError, MachineStateError


@pytest.mark.parametrize("name", ["", "a\nb", "\0", "x" * 201, "ü" * 101])
def test_names_that_cannot_be(name):
    """Empty, unprintable or too long names are refused."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a snapshot"):
        check_snapshot_name(name, {}, "m")


def test_taken_and_missing_names():
    """The errors name machine and snapshot, and what there is."""
    known = {"one": 1, "two": 2}
    with pytest.raises(MachineStateError, match="machine 'm' has a snapshot named 'one' already"):
        check_snapshot_name("one", known, "m")
    check_snapshot_name("three", known, "m")
    assert find_snapshot("two", known, "m") == 2
    with pytest.raises(MachineStateError, match=r"(?s)no snapshot named 'three'.*one, two"):
        find_snapshot("three", known, "m")
    with pytest.raises(MachineStateError, match="it has none"):
        find_snapshot("three", {}, "m")
