"""How long work tells of its progress, without knowing who shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

# A step that only counts bytes is told again after this many seconds.
_EVERY_S = 5.0


@dataclass(frozen=True)
class Step:
    """One piece of news: ``task`` ("image tiny") and ``text`` ("downloading").

    ``done`` of ``total`` bytes is finished; both are None when the step has no measure.
    """

    task: str
    text: str
    done: int | None = None
    total: int | None = None


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """A `Progress` that tells nobody."""


class LineProgress:
    """A `Progress` in lines of text: each new step at once, one that counts bytes every few seconds."""

    def __init__(self, write: Callable[[str], object]) -> None:
        """Give each line to ``write``, without a line end."""
        self._write = write
        self._last = ""
        self._told = 0.0
        self._lock = threading.Lock()

    def __call__(self, step: Step) -> None:
        """Tell one step, if it is time to. Several threads may tell at once."""
        with self._lock:
            self._tell(step)

    def _tell(self, step: Step) -> None:
        now = time.monotonic()
        text = f"{step.task}: {step.text}"
        if text == self._last and (step.total is None or now - self._told < _EVERY_S):
            return
        self._last, self._told = text, now
        if step.done and step.total and step.total >> 20:
            text += f" {step.done >> 20} of {step.total >> 20} MiB ({100 * step.done // step.total} %)"
        self._write(text)
