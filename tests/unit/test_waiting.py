"""Deadlines and waiting."""

import math
import threading

import pytest

from pytest_vmfest.errors import WaitTimeoutError
from pytest_vmfest.waiting import Deadline, all_within, wait_for


def test_a_deadline_counts_down_and_never_below_zero():
    """Remaining seconds shrink to zero, and it is expired then."""
    assert 9 < Deadline(10).remaining_s <= 10
    over = Deadline(0)
    assert over.expired
    assert over.remaining_s == 0


def test_without_a_limit_it_never_expires():
    """None is no limit, and what sockets call None."""
    deadline = Deadline(None)
    assert not deadline.expired
    assert deadline.remaining_s == math.inf
    assert deadline.timeout() is None


def test_a_part_never_outlives_the_whole():
    """A part's deadline is the smaller of its own and the whole's."""
    assert Deadline(1).at_most(100).remaining_s <= 1
    assert Deadline(100).at_most(1).remaining_s <= 1
    assert Deadline(None).at_most(1).remaining_s <= 1
    assert Deadline(None).at_most(math.inf).timeout() is None


def test_wait_for_returns_what_came_true():
    """The condition's value is returned once it is true."""
    values = iter([0, "", None, "there"])
    assert wait_for(lambda: next(values), Deadline(10), what="it", interval_s=0) == "there"


def test_wait_for_tries_at_least_once_and_names_what_did_not_come():
    """An expired deadline still gives one try; the error says what was waited for."""
    tries = []
    with pytest.raises(WaitTimeoutError, match="the answer: not within 0 s"):
        wait_for(lambda: tries.append(1), Deadline(0), what="the answer")
    assert tries == [1]


def test_a_watch_ends_the_wait():
    """What the watch raises ends a wait that can no longer succeed."""

    def watch() -> None:
        raise KeyError("dead")

    with pytest.raises(KeyError):
        wait_for(lambda: False, Deadline(60), what="it", watch=watch)


def test_what_hangs_is_left_to_itself():
    """The others are done, and for what has failed or not ended the reason is told."""
    never, did = threading.Event(), []

    def fail():
        raise OSError("no such thing")

    ends = all_within(0.2, never.wait, lambda: did.append(1), fail)
    never.set()
    assert ends == ["no answer within 0.2 s", "", "no such thing"]
    assert did == [1]
