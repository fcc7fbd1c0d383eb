"""How long work tells of its progress, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
