"""The lane's course: suite after suite, in as many places as it takes, then again what the emulator broke."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.lane.outcomes import Attempt, Book
from tests.lane.place import About, PlaceError
from tests.lane.session import Seen, Session
from tests.lane.watch import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tests.lane.place import Place
    from tests.lane.suites import Suite

MOST_PLACES = 8
"""How many hosts are booted before the lane gives up."""
_NEEDS_ANOTHER_PLACE = {Trouble.HUNG, Trouble.GONE, Trouble.STUCK}
_NOT_THE_TESTS_FAULT = {Trouble.HUNG, Trouble.GONE}


class GivenUpError(Exception):
    """The lane cannot go on: no time left, or no host stays alive."""


@dataclass
class Findings:
    """What the lane saw beside the tests' outcomes."""

    about: About | None = None
    hosts: int = 0
    machine_starts: int = 0
    ssh_addresses: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """Hosts lost and other news, in order."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Modules that skipped themselves, and why."""
    broken_suites: dict[str, str] = field(default_factory=dict)
    """Suites that could not be collected or run as a whole, and why."""

    @classmethod
    def merged(cls, parts: Iterable[Findings]) -> Findings:
        """What several lanes saw."""
        whole = cls()
        for part in parts:
            whole.about = whole.about or part.about
            whole.hosts += part.hosts
            whole.machine_starts += part.machine_starts
            whole.ssh_addresses += part.ssh_addresses
            whole.events += part.events
            whole.left_out |= part.left_out
            whole.broken_suites |= part.broken_suites
        return whole


class Lane:
    """Runs suites in places of one kind until each test has its outcome; leaves the last place standing."""

    def __init__(
        self,
        make_place: Callable[[int], Place],
        suites: Sequence[Suite],
        *,
        ends: float,
        artifacts: Path,
        say: Callable[[str], None],
    ) -> None:
        """Prepare to run until ``ends`` (monotonic seconds), keeping failures' logs in ``artifacts``.

        ``make_place`` gets 1, 2 and so on; `PlaceError` from it means that another one may do.
        """
        self.book = Book()
        self.findings = Findings()
        self.place: Place | None = None
        self._make_place = make_place
        self._made = 0
        self._suites = suites
        self._ends = ends
        self._artifacts = artifacts
        self._say = say

    def run(self) -> None:
        """Run all there is; `GivenUpError` or `WheelsError` when it ends early."""
        for suite in self._suites:
            self._first_round(suite)
        again = [suite for suite in self._suites if self.book.to_repeat(suite.name)]
        if again:
            self._say("what the emulator broke is tried once more, on a fresh host")
            self.drop_place()
        for suite in again:
            while ids := self.book.to_repeat(suite.name):
                if not self._progress(suite, ids):
                    break

    def stop(self) -> None:
        """From any thread: begin nothing more."""
        self._ends = -1.0

    def drop_place(self) -> None:
        """Destroy the place that is left."""
        if self.place is not None:
            place, self.place = self.place, None
            place.destroy()

    def _first_round(self, suite: Suite) -> None:
        targets: Sequence[str] = suite.paths
        while self._progress(suite, targets):
            if self.book.of(suite.name):
                targets = self.book.untried(suite.name)
            if not targets:
                return

    def _progress(self, suite: Suite, targets: Sequence[str]) -> bool:
        """Run pytest once; whether there is any use in another round."""
        tried = sum(len(record.attempts) for record in self.book)
        seen = self._session(suite, targets)
        if seen.uncollectable:
            self.findings.broken_suites[suite.name] = "\n".join(seen.uncollectable)
            return False
        if seen.trouble in _NEEDS_ANOTHER_PLACE:
            return True
        if sum(len(record.attempts) for record in self.book) == tried:
            why = f"pytest ended with {seen.status} and ran nothing" if seen.trouble is None else seen.trouble
            self.findings.broken_suites[suite.name] = str(why)
            return False
        return True

    def _session(self, suite: Suite, targets: Sequence[str]) -> Seen:
        place = self._ready_place()
        self._say(f"suite {suite.name!r} in {place.name}")
        session = Session(place, self.book, suite.name, say=self._say, keep=self._keep, cold=suite.cold)
        known = len(place.machines)
        seen = session.run([*suite.options, *targets], self._is_over)
        self.findings.machine_starts += len(place.machines) - known
        self.findings.ssh_addresses += seen.ssh_addresses
        self.findings.left_out |= seen.left_out
        if seen.trouble:
            self._in_trouble(place, seen, seen.trouble)
        return seen

    def _in_trouble(self, place: Place, seen: Seen, trouble: Trouble) -> None:
        during = f", during {seen.running}" if seen.running else ""
        news = f"{place.name}: {trouble}{during}"
        self._say(f"TROUBLE: {news}")
        self.findings.events.append(news)
        if trouble is Trouble.BUDGET:
            raise GivenUpError(str(trouble))
        if seen.running:
            marks = {str(trouble)} if trouble in _NOT_THE_TESTS_FAULT else place.marks()
            attempt = Attempt("failed", place.name, text=f"[call] {trouble}", marks=tuple(sorted(marks)))
            self.book.add(seen.running, attempt)
            self._keep(seen.running, attempt, {"console": place.console()})
        if trouble in _NEEDS_ANOTHER_PLACE:
            self.drop_place()

    def _ready_place(self) -> Place:
        while self.place is None and not self._is_over():
            if self._made >= MOST_PLACES:
                raise GivenUpError(f"{MOST_PLACES} hosts were booted, and none stays alive")
            self._made += 1
            try:
                self.place = self._make_place(self._made)
                self.findings.about = self.place.about
                self.findings.hosts += self.place.starts_machines
            except PlaceError as error:
                self.findings.events.append(str(error))
                self._say(f"TROUBLE: {error}")
        if self.place is None or self._is_over():
            raise GivenUpError(str(Trouble.BUDGET))
        return self.place

    def _is_over(self) -> bool:
        return time.monotonic() > self._ends

    def _keep(self, id_: str, attempt: Attempt, logs: dict[str, str]) -> None:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", id_.removeprefix("tests/"))[-150:]
        parts = [f"{id_}\nmarks: {', '.join(attempt.marks) or 'none'}\n\n{attempt.text}"]
        parts += [f"===== {log}\n{text}" for log, text in logs.items()]
        place = attempt.place.replace(" ", "-")
        (self._artifacts / f"{name}-{place}.txt").write_text("\n\n".join(parts))
