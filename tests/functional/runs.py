"""Runs of pytest that tests start, watch and kill."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

# Two boots at once under emulation, on a machine that has more to do.
BEGUN_S = 500


def until(condition: Callable[[], object], run: subprocess.Popen[str], what: str) -> None:
    """Wait for what a run is to do; a run that ends before fails the test."""
    wait_for(condition, Deadline(BEGUN_S), what=what, watch=_alive(run))


def _alive(run: subprocess.Popen[str]) -> Callable[[], None]:
    def check() -> None:
        if run.poll() is not None:
            pytest.fail(f"pytest ended with {run.returncode}:\n{run.communicate()[0]}")

    return check


def fill(home: Path) -> None:
    """Take all room that is left in a store's file system."""
    with (home / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
