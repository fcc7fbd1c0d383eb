"""How the VirtualBox lane attends to a pytest elsewhere: real processes, which tell what a guest would."""

import io
import json
import shlex
import subprocess
import time

import pytest

from tests.lane import session as session_module
from tests.lane.outcomes import Book
from tests.lane.session import Session
from tests.lane.watch import Trouble

BEAT = {"event": "beat", "machines": ["m-1"]}


def event(**what):
    """Shell text that tells an event as the guest's plugin does."""
    return f"echo {shlex.quote(json.dumps(what))} >&2"


def ended(id_, outcome, *marks):
    """Shell text that tells a test's end."""
    return event(
        event="ended", id=id_, outcome=outcome, duration_s=1, text="why", marks=marks, tails={"m": "log"}
    )


class PretendedHost:
    """Runs ``tests`` where pytest is to run, and ``pulse`` where its signs of life come from."""

    name = "host 1"

    def __init__(self, tests, *, lives=True):
        self.machines = set()
        self._commands = {
            "pytest": "\n".join(tests),
            "keeper": f"echo {shlex.quote(json.dumps(BEAT))}; exec sleep 60",
        }
        self._lives = lives

    def open(self, command):
        script = self._commands["keeper" if "tests.lane.keeper" in command else "pytest"]
        return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def answers(self):
        return self._lives


@pytest.fixture
def attend():
    """Runs a session on a host; returns what it saw, the book, the lines and the failures kept."""

    def attend(host, ends_in_s=60.0):
        book, said, kept = Book(), [], []
        session = Session(host, book, "s", say=said.append, keep=lambda *what: kept.append(what))
        ends = time.monotonic() + ends_in_s
        seen = session.run(["tests/s"], lambda: time.monotonic() > ends)
        return seen, book, said, kept

    return attend


COLLECTED = event(event="collected", ids=["a", "b"])


def test_a_run_to_its_end(attend):
    """Outcomes go into the book, output to the log, failures are kept; machines and sessions are counted."""
    host = PretendedHost(
        [
            COLLECTED, "echo a starts", event(event="began", id="a"), ended("a", "passed"),
            event(event="ssh", address="192.168.56.101"), event(event="began", id="b"),
            ended("b", "failed", "triple fault"), "echo nonsense >&2", "sleep 1",
            event(event="finished", status=1),
        ]
    )  # fmt: skip
    seen, book, said, kept = attend(host)
    assert (seen.trouble, seen.status, seen.ssh_addresses) == (None, 1, ["192.168.56.101"])
    assert {record.id: str(record.verdict) for record in book} == {"a": "passed", "b": "not proved"}
    assert host.machines == {"m-1"}
    assert "guest| a starts" in said
    assert "guest| nonsense" in said
    assert "VirtualBox machine started: m-1" in said
    assert "FAILED b; the emulator's marks: triple fault" in said
    ((id_, attempt, logs),) = kept
    assert (id_, attempt.marks, logs) == ("b", ("triple fault",), {"m": "log"})


def test_last_words_that_are_read_late(attend, monkeypatch):
    """A pytest that has said how it ended has not died, however busy its reader is."""
    read = Session._read

    def slowly(session, stream, kind):
        with stream:
            lines = stream.readlines()
        if any(b"finished" in line for line in lines):
            time.sleep(2)  # longer than the session waits for a word
        read(session, io.BytesIO(b"".join(lines)), kind)

    monkeypatch.setattr(Session, "_read", slowly)
    seen, _, _, _ = attend(PretendedHost([COLLECTED, event(event="finished", status=1)]))
    assert (seen.trouble, seen.status) == (None, 1)


@pytest.mark.parametrize(("lives", "trouble"), [(True, Trouble.DIED), (False, Trouble.GONE)])
def test_an_end_without_a_word(attend, lives, trouble):
    """A pytest that is gone without saying so has died, or its host has."""
    host = PretendedHost([COLLECTED, event(event="began", id="a"), "exit 255"], lives=lives)
    seen, book, _, _ = attend(host)
    assert (seen.trouble, seen.running) == (trouble, "a")
    assert book.untried("s") == ["a", "b"]


def test_silence(attend, monkeypatch):
    """Neither output nor beats: the host hangs."""
    monkeypatch.setattr(session_module, "SILENCE_S", 1.5)
    host = PretendedHost([COLLECTED, event(event="began", id="a"), "exec sleep 60"])
    assert attend(host)[0].trouble is Trouble.HUNG


def test_a_test_without_end(attend, monkeypatch):
    """Beats go on, the test does not."""
    monkeypatch.setattr(session_module, "STEP_S", 1.5)
    host = PretendedHost([COLLECTED, event(event="began", id="a"), "exec sleep 60"])
    assert attend(host)[0].trouble is Trouble.STUCK


def test_no_time(attend):
    """The lane's time is up."""
    host = PretendedHost([COLLECTED, "exec sleep 60"])
    assert attend(host, ends_in_s=1)[0].trouble is Trouble.BUDGET
