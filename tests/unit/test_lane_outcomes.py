"""What the VirtualBox lane makes of the tries of a test."""

import pytest

from tests.lane.outcomes import Attempt, Book, Verdict

PASSED = Attempt("passed", "host 1")
SKIPPED = Attempt("skipped", "host 1")
FAILED = Attempt("failed", "host 1")
BROKEN = Attempt("failed", "host 1", marks=("guru meditation",))


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


def test_one_book_of_several():
    """In the order of the books."""
    books = [Book(), Book()]
    books[0].collect("a", ["a1"])
    books[1].collect("b", ["b1"])
    books[0].add("a1", PASSED)
    assert [(record.id, record.verdict) for record in Book.merged(books)] == [
        ("a1", Verdict.PASSED),
        ("b1", Verdict.NOT_RUN),
    ]
