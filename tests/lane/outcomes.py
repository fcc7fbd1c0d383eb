"""What became of each test, and what is to be run (again)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TRIES = 2
"""How often a test may be tried that the emulator breaks."""


class Verdict(StrEnum):
    """What the lane says of a test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_PROVED = "not proved"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Attempt:
    """One try of a test: ``outcome`` passed, failed or skipped; ``marks`` that the emulator left on it."""

    outcome: str
    place: str
    duration_s: float = 0.0
    text: str = ""
    marks: tuple[str, ...] = ()

    @property
    def broken_by_emulator(self) -> bool:
        """Whether the failure says nothing about the project."""
        return self.outcome == "failed" and bool(self.marks)


@dataclass
class Record:
    """A test with its tries."""

    id: str
    suite: str
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """What its tries prove. One failure without a mark is final: no later success hides it."""
        if any(try_.outcome == "failed" and not try_.marks for try_ in self.attempts):
            return Verdict.FAILED
        if not self.attempts:
            return Verdict.NOT_RUN
        last = self.attempts[-1]
        return Verdict.NOT_PROVED if last.broken_by_emulator else Verdict(last.outcome)

    @property
    def may_be_repeated(self) -> bool:
        """Whether the emulator broke it and it has a try left."""
        return self.verdict is Verdict.NOT_PROVED and len(self.attempts) < TRIES


class Book:
    """All tests of the lane in their order."""

    def __init__(self) -> None:
        """Begin with an empty book."""
        self._records: dict[str, Record] = {}

    @classmethod
    def merged(cls, books: Iterable[Book]) -> Book:
        """One book of several that have no test in common."""
        whole = cls()
        for book in books:
            whole._records |= book._records
        return whole

    def __iter__(self) -> Iterator[Record]:
        """The records, in the order of collection."""
        return iter(self._records.values())

    def collect(self, suite: str, ids: list[str]) -> None:
        """Note that a suite has these tests; those that are known stay as they are."""
        for id_ in ids:
            self._records.setdefault(id_, Record(id_, suite))

    def add(self, id_: str, attempt: Attempt) -> None:
        """Note a try of a test."""
        self._records[id_].attempts.append(attempt)

    def of(self, suite: str) -> list[Record]:
        """A suite's records."""
        return [record for record in self if record.suite == suite]

    def untried(self, suite: str) -> list[str]:
        """The tests of a suite that have no outcome yet."""
        return [record.id for record in self.of(suite) if not record.attempts]

    def to_repeat(self, suite: str) -> list[str]:
        """The tests of a suite that the emulator broke and that have a try left."""
        return [record.id for record in self.of(suite) if record.may_be_repeated]

    def count(self, suite: str | None = None) -> Counter[Verdict]:
        """How many tests have each verdict."""
        return Counter(record.verdict for record in self if suite in (None, record.suite))
