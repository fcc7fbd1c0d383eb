"""What the VirtualBox lane makes of the tries of a test."""

import pytest

from tests.lane.outcomes import Attempt, Book, Verdict

PASSED = Attempt("passed", 1)
SKIPPED = Attempt("skipped", 1)
FAILED = Attempt("failed", 1)
BROKEN = Attempt("failed", 1, marks=("guru meditation",))


@pytest.mark.parametrize(
    ("attempts", "verdict", "again"),
    [
        ([], Verdict.NOT_RUN, False),
        ([PASSED], Verdict.PASSED, False),
        ([SKIPPED], Verdict.SKIPPED, False),
        ([FAILED], Verdict.FAILED, False),
        ([BROKEN], Verdict.NOT_PROVED, True),
        ([BROKEN, PASSED], Verdict.PASSED, False),
        ([BROKEN, BROKEN], Verdict.NOT_PROVED, False),
        ([BROKEN, FAILED], Verdict.FAILED, False),
        ([FAILED, PASSED], Verdict.FAILED, False),
    ],
)
def test_verdicts(attempts, verdict, again):
    """Only what bears the emulator's mark is tried again, once; nothing hides a failure without it."""
    book = Book()
    book.collect("s", ["t"])
    for attempt in attempts:
        book.add("t", attempt)
    (record,) = book
    assert record.verdict is verdict
    assert book.to_repeat("s") == (["t"] if again else [])
    assert book.untried("s") == ([] if attempts else ["t"])


def test_collecting_again_forgets_nothing():
    """A later session collects only what remains: outcomes and the other tests stay, in their order."""
    book = Book()
    book.collect("a", ["a1", "a2"])
    book.collect("b", ["b1"])
    book.add("a1", PASSED)
    book.collect("a", ["a2"])
    assert [record.id for record in book] == ["a1", "a2", "b1"]
    assert book.untried("a") == ["a2"]
    assert book.count("a") == {Verdict.PASSED: 1, Verdict.NOT_RUN: 1}
    assert book.count() == {Verdict.PASSED: 1, Verdict.NOT_RUN: 2}
