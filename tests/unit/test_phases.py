"""Phases as they are noted, and as they become properties."""

import pytest

from pytest_vmfest.phases import Phase, Times


@pytest.fixture
def times():
    """What a worker called gw0 notes."""
    return Times("gw0")


def test_phases_in_turn(times):
    """Each begins where the one before ended."""
    times.add_in_turn("t", 100.0, {"clone": 0.5, "boot": 2.0}, node="db-0", machine="db-0-1a")
    assert times.phases == [
        Phase("t", "clone", 100.0, 0.5, "gw0", "db-0", "db-0-1a"),
        Phase("t", "boot", 100.5, 2.0, "gw0", "db-0", "db-0-1a"),
    ]


def test_what_fails_took_time_too(times):
    """A phase that ends by an error is noted, for each of its machines."""
    with pytest.raises(OSError, match="no"), times.timed("t", "teardown", [("a", "m1"), ("b", "m2")]):
        raise OSError("no")
    assert [(phase.node, phase.machine) for phase in times.phases] == [("a", "m1"), ("b", "m2")]


def test_properties_are_told_once(times):
    """Names say node and phase, values are seconds with three decimals."""
    times.add("t", "boot", 1.0, 2.15, node="db-0", machine="db-0-1a")
    times.add("t", "image", 1.0, 1 / 3)
    assert times.untold_properties() == [("vmfest.db-0.boot", "2.150"), ("vmfest.image", "0.333")]
    assert times.untold_properties() == []


def test_only_tests_that_use_machines_are_noted(times):
    """Other tests are not, and those that were skipped have no teardown."""
    times.add_part("plain", "call", 1.0, 1.0, failed=True, concerned=False)
    times.add_part("skipped", "teardown", 1.0, 1.0, failed=False, concerned=True)
    assert times.phases == []
    times.add("late", "boot", 1.0, 1.0, node="vm", machine="vm-1")
    times.add_part("late", "call", 1.0, 1.0, failed=True, concerned=False)
    assert [(phase.phase, phase.failed) for phase in times.phases] == [("boot", False), ("test", True)]
