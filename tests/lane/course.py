"""Several lanes at the same time, each with its share of the suites."""

from __future__ import annotations

import threading
import traceback
from typing import TYPE_CHECKING

from tests.lane.lane import Findings, GivenUpError, Lane
from tests.lane.outcomes import Book

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.lane.place import Place

_FAREWELL_S = 120.0


class Course:
    """Runs shares at the same time, each of them lane after lane; its ``with`` block leaves no place."""

    def __init__(self, shares: Sequence[Sequence[Lane]], say: Callable[[str], None]) -> None:
        """Prepare; ``say`` is told what ends a lane early."""
        self.place: Place | None = None
        """Where machines ran to the end, for whoever has a use for it."""
        self.trouble: list[BaseException] = []
        """What ended lanes for which there is no environment, or no explanation."""
        self._lanes = [lane for share in shares for lane in share]
        self._say = say
        self._lock = threading.Lock()
        self._unfinished = len(shares)
        self._threads = [
            threading.Thread(target=self._run_share, args=(share,), daemon=True) for share in shares
        ]

    def __enter__(self) -> Course:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End all that is left."""
        for lane in self._lanes:
            lane.stop()
        for thread in self._threads:
            thread.join(_FAREWELL_S)
        for lane in self._lanes:
            lane.drop_place()

    def wait(self) -> None:
        """Until all have ended."""
        for thread in self._threads:
            thread.join()

    @property
    def book(self) -> Book:
        """All tests."""
        return Book.merged(lane.book for lane in self._lanes)

    @property
    def findings(self) -> Findings:
        """All that was seen."""
        return Findings.merged(lane.findings for lane in self._lanes)

    def _run_share(self, lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            try:
                lane.run()
            except GivenUpError as error:
                self._say(f"GIVEN UP: {error}")
            except Exception as error:
                self._say(traceback.format_exc())
                self.trouble.append(error)
            if lane is not lanes[-1]:
                lane.drop_place()
        with self._lock:
            self._unfinished -= 1
            is_last = not self._unfinished
        if is_last and lane.place is not None and lane.place.starts_machines:
            self.place = lane.place
        else:
            lane.drop_place()  # so that it takes nothing from the others
