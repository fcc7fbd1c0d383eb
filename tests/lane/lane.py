"""The lane's course: suite after suite, on as many hosts as it takes, then again what the emulator broke."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.lane.host import About, Host, HostError
from tests.lane.outcomes import Attempt, Book
from tests.lane.session import Seen, Session
from tests.lane.watch import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_vmfest import Server
    from pytest_vmfest.specs import ImageModel
    from tests.lane.suites import Suite

MOST_HOSTS = 8
"""How many hosts are booted before the lane gives up."""
_NEEDS_ANOTHER_HOST = {Trouble.HUNG, Trouble.GONE, Trouble.STUCK}
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


class Lane:
    """Runs suites on hosts until each test has its outcome; its ``with`` block destroys the last host."""

    def __init__(
        self,
        server: Server,
        image: ImageModel,
        suites: Sequence[Suite],
        *,
        ends: float,
        artifacts: Path,
        say: Callable[[str], None],
    ) -> None:
        """Prepare to run until ``ends`` (monotonic seconds), keeping failures' logs in ``artifacts``."""
        self.book = Book()
        self.findings = Findings()
        self._server = server
        self._image = image
        self._suites = suites
        self._ends = ends
        self._artifacts = artifacts
        self._say = say
        self._host: Host | None = None
        self._tags = {"lane": secrets.token_hex(8)}

    def __enter__(self) -> Lane:
        """Return the lane itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Destroy the host that is left, also one that an interrupt caught between two steps."""
        self._drop_host()
        self._server.sweep(self._tags)

    def run(self) -> None:
        """Run all there is; `GivenUpError`, `HostError` or `WheelsError` when it ends early."""
        for suite in self._suites:
            self._first_round(suite)
        again = [suite for suite in self._suites if self.book.to_repeat(suite.name)]
        if again:
            self._say("what the emulator broke is tried once more, on a fresh host")
            self._drop_host()
        for suite in again:
            while ids := self.book.to_repeat(suite.name):
                if not self._progress(suite, ids):
                    break

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
        if seen.trouble in _NEEDS_ANOTHER_HOST:
            return True
        if sum(len(record.attempts) for record in self.book) == tried:
            why = f"pytest ended with {seen.status} and ran nothing" if seen.trouble is None else seen.trouble
            self.findings.broken_suites[suite.name] = str(why)
            return False
        return True

    def _session(self, suite: Suite, targets: Sequence[str]) -> Seen:
        host = self._ready_host()
        self._say(f"suite {suite.name!r} on host {host.number}")
        session = Session(host, self.book, suite.name, say=self._say, keep=self._keep)
        known = len(host.machines)
        seen = session.run([*suite.options, *targets], self._ends)
        self.findings.machine_starts += len(host.machines) - known
        self.findings.ssh_addresses += seen.ssh_addresses
        self.findings.left_out |= seen.left_out
        if seen.trouble:
            self._in_trouble(host, seen, seen.trouble)
        return seen

    def _in_trouble(self, host: Host, seen: Seen, trouble: Trouble) -> None:
        during = f", during {seen.running}" if seen.running else ""
        news = f"host {host.number}: {trouble}{during}"
        self._say(f"TROUBLE: {news}")
        self.findings.events.append(news)
        if trouble is Trouble.BUDGET:
            raise GivenUpError(str(trouble))
        if seen.running:
            marks = {str(trouble)} if trouble in _NOT_THE_TESTS_FAULT else host.marks()
            attempt = Attempt("failed", host.number, text=f"[call] {trouble}", marks=tuple(sorted(marks)))
            self.book.add(seen.running, attempt)
            self._keep(seen.running, attempt, {"host's console": host.node.console()[-20_000:]})
        if trouble in _NEEDS_ANOTHER_HOST:
            self._drop_host()

    def _ready_host(self) -> Host:
        while self._host is None:
            if time.monotonic() > self._ends:
                raise GivenUpError(str(Trouble.BUDGET))
            if self.findings.hosts >= MOST_HOSTS:
                raise GivenUpError(f"{MOST_HOSTS} hosts were booted, and none stays alive")
            self.findings.hosts += 1
            self._boot()
        return self._host

    def _boot(self) -> None:
        try:
            self._host = Host(self._server, self._image, self.findings.hosts, self._tags, self._say)
            self.findings.about = self._host.prepare(self._server)
        except HostError as error:
            self._drop_host()
            self.findings.events.append(str(error))
            self._say(f"TROUBLE: {error}")

    def _drop_host(self) -> None:
        if self._host is not None:
            host, self._host = self._host, None
            host.destroy()

    def _keep(self, id_: str, attempt: Attempt, logs: dict[str, str]) -> None:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", id_.removeprefix("tests/"))[-150:]
        parts = [f"{id_}\nmarks: {', '.join(attempt.marks) or 'none'}\n\n{attempt.text}"]
        parts += [f"===== {log}\n{text}" for log, text in logs.items()]
        (self._artifacts / f"{name}-host{attempt.host}.txt").write_text("\n\n".join(parts))
