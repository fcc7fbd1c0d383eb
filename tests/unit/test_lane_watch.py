"""When the VirtualBox lane gives a session up."""

import pytest

from tests.lane.watch import Trouble, Watch


@pytest.fixture
def watch():
    """A watch that began at second 0."""
    return Watch(0, silence_s=60, step_s=600)


def test_silence_is_a_hung_host(watch):
    """Without any sign of life, the host hangs."""
    assert watch.trouble(60) is None
    assert watch.trouble(61) is Trouble.HUNG


def test_signs_of_life_do_not_prolong_a_test(watch):
    """A host that lives, with a test that does not end, is told apart from one that hangs."""
    for second in range(0, 600, 30):
        watch.heard(second)
        assert watch.trouble(second) is None
    watch.heard(601)
    assert watch.trouble(601) is Trouble.STUCK


def test_every_test_has_its_time(watch):
    """A test's end begins the next one's time."""
    watch.stepped(599)
    watch.heard(1100)
    assert watch.trouble(1150) is None
