"""How well a guest knows the time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_vmfest.waiting import Deadline
from pytest_vmfest.warm import mending

if TYPE_CHECKING:
    from pytest_vmfest import Node


def lateness(node: Node) -> tuple[float, float]:
    """By how many seconds the guest's clock is late, and by how many that may be wrong."""
    readings = []
    for _ in range(5):
        began = time.time()
        told = mending.clock_of(node.run_script(mending.mend_command(), Deadline(30)))
        ended = time.time()
        assert told is not None
        readings.append(((ended - began) / 2, (began + ended) / 2 - told))
    error_s, late_s = min(readings)
    return late_s, error_s
