"""What this process owns on one driver: nothing is made before it is written down and guarded."""

from __future__ import annotations

import os
import secrets
import threading
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_vmfest import guardian
from pytest_vmfest.errors import StoreError
from pytest_vmfest.ledger import Kind, Ledger, MemoryLedger, Owner
from pytest_vmfest.processes import Process
from pytest_vmfest.progress import Step
from pytest_vmfest.reaper import reap, reap_dead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.progress import Progress


class Ownership:
    """What this process makes by a driver is its own: it is gone when the process is, whatever way that ends.

    Each machine bears ``tags``, and one more by which it is known again. ``parent`` is a process without
    which this one has nothing to do. ``progress`` is told of what a run before has left, and of a guardian
    that was killed.
    """

    def __init__(
        self, driver: Driver, tags: Mapping[str, str], *, parent: Process | None, progress: Progress
    ) -> None:
        """Nothing is written before something is to be made."""
        # The same tags, and even the same name, may be another's.
        self.tags = {**tags, "ledger": secrets.token_hex(8)}
        self._driver = driver
        self._parent = parent
        self._progress = progress
        self._ledger: Ledger | None = None
        self._guardian: Process | None = None
        self._lock = threading.RLock()  # to reap is to remove, which is told to us

    def will_make(self, kind: Kind, name: str) -> None:
        """Write down what is about to be made, once a guardian watches. Raises `StoreError`."""
        with self._lock:
            self._guarded().add(kind, name)

    def is_gone(self, kind: Kind, name: str) -> None:
        """Write down that it was removed."""
        with self._lock, suppress(StoreError):  # who reaps it finds nothing, and that is fine
            if self._ledger is not None:
                self._ledger.cross_out(kind, name)

    def release(self, machine: str) -> None:
        """Own a machine no longer: it stays."""
        self.is_gone(Kind.MACHINE, machine)

    def keep(self, machine: str, for_s: float) -> None:
        """Let a machine live for so many seconds, also when this process has ended."""
        with self._lock:
            if self._ledger is not None:
                self._ledger.keep(machine, time.time() + for_s)

    def settle(self) -> None:
        """Remove all that is still there and not kept; `DestroyError` tells what cannot be.

        That is then left to the guardian, who tries again when this process has ended.
        """
        with self._lock:
            if self._ledger is None:
                return
            reap(self._ledger, self._driver, self._owner)
            if self._guardian is not None:
                guardian.dismiss(self._ledger, self._guardian)
            self._ledger = self._guardian = None

    @cached_property
    def _owner(self) -> Owner:
        settings = self._driver.settings.as_json()
        return Owner(self._driver.name, settings, self.tags, Process.of(os.getpid()), self._parent)

    def _guarded(self) -> Ledger:
        """The ledger, which has a guardian that lives."""
        if not self._driver.outlives_us:
            self._ledger = self._ledger or MemoryLedger(self._owner)
            return self._ledger
        if self._ledger is None:
            self._reap_dead()
            self._ledger = Ledger.begin(self._driver.settings.home, self._owner)
        if self._guardian is None or not self._guardian.alive:
            if self._guardian is not None:
                self._progress(Step("guardian", "it was killed; another one watches now"))
            try:
                self._guardian = guardian.arm(self._ledger)
            except OSError as error:
                if not self._ledger.entries():
                    self._ledger.remove()
                    self._ledger = None
                raise StoreError(f"no machine is made, as its guardian does not start: {error}") from error
        return self._ledger

    def _reap_dead(self) -> None:
        for reaped in reap_dead(self._driver.settings.home):
            if reaped.removed:
                names = ", ".join(reaped.removed)
                self._progress(Step("leftovers", f"{names} had been left by another run: removed"))
            if reaped.error:
                self._progress(Step("leftovers", reaped.error))
