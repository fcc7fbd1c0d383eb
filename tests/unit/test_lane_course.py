"""The VirtualBox lane's course, with hosts that only pretend: what runs where, and how often."""

import threading
import time

import pytest

from tests.lane import lane as lane_module
from tests.lane.course import Course
from tests.lane.lane import MOST_PLACES, GivenUpError, Lane
from tests.lane.outcomes import Attempt
from tests.lane.place import About, PlaceError
from tests.lane.session import Seen
from tests.lane.suites import Suite
from tests.lane.watch import Trouble

ONE = Suite("one", ("tests/one",))
TWO = Suite("two", ("tests/two",), ("--option",))
TESTS = {"tests/one": ["a", "b", "c"], "tests/two": ["d", "e"]}


class Play:
    """What happens on the hosts: by test id, the outcomes of its tries, and what was seen."""

    def __init__(self):
        self.script = {}
        self.sessions = []
        self.destroyed = []
        self.boot_trouble = 0


@pytest.fixture
def play(monkeypatch):
    """Replace hosts and sessions."""
    play = Play()

    class FakeHost:
        starts_machines = True
        about = About("7.2", "3.14", "7", "cpu")

        def __init__(self, number):
            if number <= play.boot_trouble:
                raise PlaceError("it does not boot")
            self.number, self.name, self.machines = number, f"host {number}", set()

        def console(self):
            return "console"

        def destroy(self):
            play.destroyed.append(self.number)

        def marks(self):
            return {"guru meditation"} if "marked" in play.script else set()

    class FakeSession:
        def __init__(self, place, book, suite, *, say, keep, cold=False):
            self.host, self.book, self.suite = place, book, suite

        def run(self, arguments, is_over):
            play.sessions.append((self.host.number, arguments))
            if play.script.get("before"):
                return Seen(trouble=play.script["before"].pop(0))
            targets = [word for word in arguments if not word.startswith("--")]
            ids = [id_ for target in targets for id_ in TESTS.get(target, [target])]
            self.book.collect(self.suite, ids)
            for id_ in ids:
                said = play.script.get(id_, [])
                outcome = said.pop(0) if said else "passed"
                if isinstance(outcome, Trouble):
                    return Seen(trouble=outcome, running=id_)
                self.book.add(id_, outcome if isinstance(outcome, Attempt) else Attempt(outcome, "host 1"))
            self.host.machines |= set(ids)
            return Seen(status=0, ssh_addresses=["192.168.56.101"])

    play.host = FakeHost
    monkeypatch.setattr(lane_module, "Session", FakeSession)
    return play


@pytest.fixture
def lane(play, tmp_path):
    """A lane over both suites."""
    return make_lane(play, tmp_path, [ONE, TWO])


def make_lane(play, tmp_path, suites, make_place=None):
    """A lane with a minute's time."""
    ends = time.monotonic() + 60
    make = make_place or play.host
    return Lane(make, suites, ends=ends, artifacts=tmp_path / "kept", say=lambda _: None)


def verdicts(lane):
    """Every test's verdict."""
    return {record.id: str(record.verdict) for record in lane.book}


BROKEN = Attempt("failed", "host 1", marks=("guru meditation",))


def test_all_well(lane, play):
    """Each suite is one session with its options, all on one host."""
    lane.run()
    assert play.sessions == [(1, ["tests/one"]), (1, ["--option", "tests/two"])]
    assert set(verdicts(lane).values()) == {"passed"}
    assert lane.findings.machine_starts == 5


def test_a_hung_host_is_replaced_and_the_run_goes_on(lane, play, tmp_path):
    """What has no outcome goes on at once on a new host; the test that it hung in comes last, on another."""
    play.script["b"] = [Trouble.HUNG]
    lane.run()
    assert play.sessions == [
        (1, ["tests/one"]), (2, ["c"]), (2, ["--option", "tests/two"]), (3, ["b"]),
    ]  # fmt: skip
    assert play.destroyed == [1, 2]  # the last one is left standing
    assert lane.findings.hosts == 3
    assert set(verdicts(lane).values()) == {"passed"}
    assert lane.findings.events == ["host 1: the host hung, during b"]
    assert "console" in (tmp_path / "kept" / "b-host-1.txt").read_text()


def test_a_host_that_hangs_before_anything_is_collected(lane, play):
    """The suite begins anew."""
    play.script["before"] = [Trouble.GONE]
    lane.run()
    assert play.sessions[:2] == [(1, ["tests/one"]), (2, ["tests/one"])]
    assert set(verdicts(lane).values()) == {"passed"}


def test_what_the_emulator_breaks_twice_is_given_up(lane, play):
    """Hung once and a guru meditation then: not proved, and not tried a third time."""
    play.script["b"] = [Trouble.HUNG, BROKEN]
    lane.run()
    assert verdicts(lane)["b"] == "not proved"
    assert play.sessions[-1] == (3, ["b"])


def test_a_host_that_hangs_at_a_second_try_hinders_no_other(lane, play):
    """The others that wait for their second try get it on a further host."""
    play.script |= {"a": [BROKEN, Trouble.HUNG], "e": [BROKEN]}
    lane.run()
    assert verdicts(lane) == {"a": "not proved", "b": "passed", "c": "passed", "d": "passed", "e": "passed"}


def test_a_plain_failure_is_not_repeated(lane, play):
    """No retry hides our own mistakes."""
    play.script["b"] = ["failed"]
    lane.run()
    assert verdicts(lane)["b"] == "failed"
    assert len(play.sessions) == 2


@pytest.mark.parametrize(("marked", "verdict"), [(False, "failed"), (True, "passed")])
@pytest.mark.parametrize("trouble", [Trouble.STUCK, Trouble.DIED])
def test_a_test_that_never_ends_or_kills_pytest_fails_unless_marked(lane, play, trouble, marked, verdict):
    """The host lives, so it is asked for marks; the rest goes on."""
    play.script |= {"b": [trouble]} | ({"marked": []} if marked else {})
    lane.run()
    assert verdicts(lane) == {"a": "passed", "b": verdict, "c": "passed", "d": "passed", "e": "passed"}


def test_no_time_left(lane, play):
    """The lane ends at once, and what has not run stays so."""
    play.script["b"] = [Trouble.BUDGET]
    with pytest.raises(GivenUpError, match="time"):
        lane.run()
    assert verdicts(lane) == {"a": "passed", "b": "not run", "c": "not run"}


def test_a_host_that_cannot_be_used_is_replaced(lane, play):
    """One that does not boot is told."""
    play.boot_trouble = 1
    lane.run()
    assert play.sessions[0][0] == 2
    assert lane.findings.events == ["it does not boot"]


def test_hosts_are_not_booted_for_ever(lane, play):
    """There is an end to it."""
    play.boot_trouble = 99
    with pytest.raises(GivenUpError, match="hosts") as given_up:
        lane.run()
    assert lane.findings.about is None
    assert str(MOST_PLACES) in str(given_up.value)


def test_shares_run_at_the_same_time(play, tmp_path):
    """Each waits for the other to begin; one report tells of both, and only the last place is left."""
    both = threading.Barrier(2, timeout=30)

    def make_place(number):
        both.wait()
        return play.host(number)

    shares = [[make_lane(play, tmp_path, [suite], make_place)] for suite in (ONE, TWO)]
    with Course(shares, lambda _: None) as course:
        course.wait()
        assert course.place is not None
        assert play.destroyed == [1]
    assert play.destroyed == [1, 1]
    assert set(verdicts(course).values()) == {"passed"}
    assert len(verdicts(course)) == course.findings.machine_starts == 5
    assert course.findings.hosts == 2
    assert course.trouble == []


def test_a_shares_lanes_follow_one_another(play, tmp_path):
    """The place of one is gone before the next begins, also when there is no environment for it."""
    said = []

    def no_place(number):
        raise RuntimeError("no packages")

    shares = [[make_lane(play, tmp_path, [ONE], no_place), make_lane(play, tmp_path, [TWO])]]
    with Course(shares, said.append) as course:
        course.wait()
    assert verdicts(course) == {"d": "passed", "e": "passed"}
    assert [str(error) for error in course.trouble] == ["no packages"]
    assert "RuntimeError: no packages" in said[0]


def test_an_interrupt_ends_all_shares(play, tmp_path):
    """A place that is just being made is destroyed, and nothing is begun in it."""
    began, stopped = threading.Event(), threading.Event()

    class Stopped(Lane):
        def stop(self):
            super().stop()
            stopped.set()

    def make_place(number):
        began.set()
        assert stopped.wait(30)
        return play.host(number)

    def interrupted():
        ends = time.monotonic() + 60
        lane = Stopped(make_place, [ONE], ends=ends, artifacts=tmp_path, say=lambda _: None)
        with Course([[lane]], lambda _: None):
            assert began.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert play.destroyed == [1]
    assert play.sessions == []
