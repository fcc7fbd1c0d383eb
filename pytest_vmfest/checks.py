"""Findings about the host: what is there, what is missing, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One finding: ``ok``, what was found, and what to do when it is not well.

    ``packages`` are those of the host's distribution (Debian and Ubuntu) that mend it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    packages: tuple[str, ...] = ()
