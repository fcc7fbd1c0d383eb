"""The watch over a pytest in a guest that may hang: when to give it up, and why."""

from __future__ import annotations

from enum import StrEnum


class Trouble(StrEnum):
    """Why a session was given up, in words for the report."""

    HUNG = "the host hung"
    GONE = "the host went away"
    STUCK = "the test did not end, nor did its time limit end it"
    DIED = "the test process died"
    BUDGET = "the time was used up"


class Watch:
    """Knows when the guest last gave a sign of life and when the present step began (monotonic seconds)."""

    def __init__(self, now: float, *, silence_s: float, step_s: float) -> None:
        """Allow ``silence_s`` without any sign, and ``step_s`` for collection and each test."""
        self._silence_s = silence_s
        self._step_s = step_s
        self._heard = now
        self._step_began = now

    def heard(self, now: float) -> None:
        """There was a sign of life."""
        self._heard = now

    def stepped(self, now: float) -> None:
        """A test began or ended."""
        self._heard = self._step_began = now

    def trouble(self, now: float) -> Trouble | None:
        """What is wrong by now."""
        if now - self._heard > self._silence_s:
            return Trouble.HUNG
        if now - self._step_began > self._step_s:
            return Trouble.STUCK
        return None
