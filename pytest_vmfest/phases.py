"""What a run's time was spent on, phase by phase: on images, on machines, on the tests themselves."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PROPERTY = "vmfest."
"""What the names of a test's properties begin with."""
# How pytest calls the parts of a test, and how we do.
_PARTS = {"setup": "setup", "call": "test", "teardown": "teardown"}
_NO_MACHINE = (("", ""),)


@dataclass(frozen=True)
class Phase:
    """How long a phase took; plain data, so that workers can send it.

    What belongs to no machine has neither ``node`` nor ``machine``: ``image``, and a test's own ``setup``,
    ``test`` and ``teardown``.
    """

    test: str
    """The test that it was done for; of machines of a wider scope the place and the fixture's name."""
    phase: str
    began: float
    """In seconds since the epoch."""
    seconds: float
    worker: str
    node: str = ""
    machine: str = ""
    failed: bool = False
    """Whether it is a part of a test, and failed."""

    @property
    def ended(self) -> float:
        """In seconds since the epoch."""
        return self.began + self.seconds

    @property
    def as_property(self) -> tuple[str, str]:
        """Name and value for JUnit's XML: ``("vmfest.db-0.boot", "2.150")``."""
        name = f"{self.node}.{self.phase}" if self.node else self.phase
        return PROPERTY + name, f"{self.seconds:.3f}"


class Times:
    """Notes the phases of one process's tests and machines."""

    def __init__(self, worker: str) -> None:
        """``worker`` is how the process is called among those of the run."""
        self.phases: list[Phase] = []
        self._worker = worker
        self._tests: set[str] = set()
        self._told = 0
        self._sent = 0

    def add(
        self,
        test: str,
        phase: str,
        began: float,
        seconds: float,
        *,
        node: str = "",
        machine: str = "",
        failed: bool = False,
    ) -> None:
        """Note a phase that has ended."""
        self._tests.add(test)
        self.phases.append(Phase(test, phase, began, max(0.0, seconds), self._worker, node, machine, failed))

    def add_in_turn(
        self, test: str, began: float, timings: Mapping[str, float], *, node: str, machine: str
    ) -> None:
        """Note phases of a machine that followed each other."""
        for phase, seconds in timings.items():
            self.add(test, phase, began, seconds, node=node, machine=machine)
            began += seconds

    @contextmanager
    def timed(
        self, test: str, phase: str, machines: Iterable[tuple[str, str]] = _NO_MACHINE
    ) -> Iterator[None]:
        """Note what is done inside, also if it fails: once, or for each of ``machines`` (node, machine)."""
        machines = tuple(machines)
        began, clock = time.time(), time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - clock
            for node, machine in machines:
                self.add(test, phase, began, seconds, node=node, machine=machine)

    def add_part(
        self, test: str, part: str, began: float, seconds: float, *, failed: bool, concerned: bool
    ) -> None:
        """Note a part of a test as pytest calls them, if it is ``concerned`` or has used a machine before."""
        if test not in self._tests and (part == "teardown" or not concerned):
            return
        self.add(test, _PARTS[part], began, seconds, failed=failed)

    def unsent(self) -> list[Phase]:
        """All phases since this was last asked for."""
        fresh, self._sent = self.phases[self._sent :], len(self.phases)
        return fresh

    def untold_properties(self) -> list[tuple[str, str]]:
        """The properties of all phases since this was last asked for."""
        fresh, self._told = self.phases[self._told :], len(self.phases)
        return [phase.as_property for phase in fresh]
