"""A node's start in several tries: a boot that fails is tried again with a fresh machine, and told."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pytest_vmfest.errors import StartError
from pytest_vmfest.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_vmfest.node import Node
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.startup import FailedBoot, Startup


class Tries:
    """Starts one node. Only what came of the boot is tried again; see `Startup.failed_boot`."""

    def __init__(
        self, make: Callable[[Sequence[FailedBoot], bool], Startup], *, retries: int, news: Progress
    ) -> None:
        """``make`` gives a new start, told of the failed ones before, and whether it is the last.

        ``news`` is told of each that is tried again.
        """
        self._make = make
        self._retries = retries
        self._news = news
        self._lock = threading.Lock()
        self._cancelled = False
        self._now: Startup | None = None

    def cancel(self) -> None:
        """Give the start up, and try no more; see `Startup.cancel`."""
        with self._lock:
            self._cancelled = True
            if self._now:
                self._now.cancel()

    def disconnect(self) -> None:
        """End what the start is waiting for in the guest."""
        if self._now:
            self._now.disconnect()

    def run(self) -> Node:
        """Create, boot, connect and introduce the node; raises what `Startup.run` does, of the last try."""
        failed: list[FailedBoot] = []
        began = time.time()
        while True:
            now = self._next(failed)
            try:
                node = now.run()
                if failed:
                    node.timings = {"failed_start": node.began - began, **node.timings}
                    node.began = began
                return node
            except StartError:
                if now.failed_boot is None:
                    raise
                failed.append(now.failed_boot)
            text = f"did not come up: {failed[-1]}; trying again with a fresh machine"
            self._news(Step(f"machine {now.machine}", text))

    def _next(self, failed: Sequence[FailedBoot]) -> Startup:
        with self._lock:
            self._now = self._make(failed, len(failed) >= self._retries)
            if self._cancelled:
                self._now.cancel()
            return self._now
