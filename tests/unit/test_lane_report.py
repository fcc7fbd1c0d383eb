"""The VirtualBox lane's report and exit status."""

import pytest

from tests.lane import report
from tests.lane.lane import Findings
from tests.lane.outcomes import Attempt, Book
from tests.lane.place import About
from tests.lane.suites import Suite

SUITES = [Suite("main", ("tests/main",)), Suite("more", ("tests/more",), essential=False)]
PASSED = Attempt("passed", "host 1")
FAILED = Attempt("failed", "host 1", text="[call] it is wrong\nhere")
BROKEN = Attempt("failed", "host 1", marks=("guru meditation",))


@pytest.fixture
def findings():
    """A lane that saw machines and sessions."""
    about = About("7.2.22", "3.14", "7.2.13", "AMD EPYC")
    return Findings(about, hosts=2, machine_starts=9, ssh_addresses=["192.168.56.101", "127.0.0.1"])


@pytest.fixture
def book():
    """Ten tests that passed."""
    book = Book()
    book.collect("main", [f"main{n}" for n in range(10)])
    for record in book:
        book.add(record.id, PASSED)
    return book


def told(book, findings):
    """The report as one text."""
    return "\n".join(report.lines(book, findings, SUITES, qemu="QEMU 11", took_s=125))


def test_all_proved(book, findings):
    """What is seen is told, with the closing line of pytest's kind."""
    assert report.exit_status(book, findings, SUITES) == report.PROVED
    text = told(book, findings)
    assert "VirtualBox 7.2.22, Python 3.14, Linux 7.2.13, on AMD EPYC" in text
    assert "hosts booted: 2" in text
    assert "machines started: 9; SSH sessions: 2, of them over vboxnet0: 1" in text
    assert text.endswith("===== 10 passed in 2:05 =====")
    assert "!!!!" not in text


def test_modules_that_skip_themselves_are_told(book, findings):
    """With their reason."""
    findings.left_out = {"tests/main/test_x.py": "Skipped: not here"}
    assert "skipped as a whole: tests/main/test_x.py (Skipped: not here)" in told(book, findings)


def test_one_failure_fails(book, findings):
    """A failure without a mark is told with its text."""
    book.collect("more", ["bad"])
    book.add("bad", FAILED)
    assert report.exit_status(book, findings, SUITES) == report.FAILED
    assert "FAILED bad\n    [call] it is wrong\n    here" in told(book, findings)


def test_what_the_emulator_broke_twice_is_loud_but_no_failure(book, findings):
    """One of eleven tests may be lost to the emulator; it is named."""
    book.collect("main", ["unlucky"])
    book.add("unlucky", BROKEN)
    book.add("unlucky", BROKEN)
    assert report.exit_status(book, findings, SUITES) == report.PROVED
    assert "!!!! NOT PROVED: the emulator broke it twice: unlucky (guru meditation; guru meditation)" in told(
        book, findings
    )


def test_a_second_try_is_told(book, findings):
    """Who reads the report sees what did not work at once."""
    book.collect("main", ["second"])
    book.add("second", BROKEN)
    book.add("second", PASSED)
    assert "passed at the second try: second (the first time: guru meditation)" in told(book, findings)


def test_too_much_broken_by_the_emulator_proves_nothing(book, findings):
    """Of an essential suite nine tests in ten must pass."""
    book.collect("main", ["a", "b"])
    for id_ in ("a", "b"):
        book.add(id_, BROKEN)
        book.add(id_, BROKEN)
    assert report.exit_status(book, findings, SUITES) == report.NOT_PROVED
    assert "!!!! NOT PROVED: suite 'main': 10 of 12 tests passed, 90% are needed" in told(book, findings)


def test_what_did_not_run_is_not_proved(book, findings):
    """Also in a suite that is not essential: the time was too short, and that is to be mended."""
    book.collect("more", ["late"])
    assert report.exit_status(book, findings, SUITES) == report.NOT_PROVED
    assert "!!!! NOT RUN: late" in told(book, findings)


def test_skips_alone_prove_nothing(findings):
    """A suite that skips itself has not been run."""
    book = Book()
    book.collect("main", ["a"])
    book.add("a", Attempt("skipped", "host 1", text="[setup] Skipped: no VirtualBox"))
    assert report.exit_status(book, findings, SUITES) == report.NOT_PROVED
    assert "skipped: a (Skipped: no VirtualBox)" in told(book, findings)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("machine_starts", 0, "no machine was seen starting"),
        ("ssh_addresses", ["127.0.0.1"], "no SSH session over vboxnet0 was seen"),
        ("broken_suites", {"more": "SyntaxError"}, "suite 'more' did not run: SyntaxError"),
    ],
)
def test_evidence_is_asked_for(book, findings, field, value, why):
    """Tests that pass without machines, or a suite that cannot be collected, prove nothing."""
    setattr(findings, field, value)
    assert report.exit_status(book, findings, SUITES) == report.NOT_PROVED
    assert f"!!!! NOT PROVED: {why}" in told(book, findings)


def test_no_host_is_no_environment():
    """When no host ever came up, that is told apart from a lane that proved too little, or had no time."""
    assert report.exit_status(Book(), Findings(events=["no host"]), SUITES) == report.NO_ENVIRONMENT
    assert report.exit_status(Book(), Findings(), SUITES) == report.NOT_PROVED
