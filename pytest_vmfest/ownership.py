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
from pytest_vmfest.errors import StoreError, VmfestError, WaitTimeoutError
from pytest_vmfest.ledger import Kind, Ledger, MemoryLedger, Owner
from pytest_vmfest.memory import limit_mib
from pytest_vmfest.processes import Process
from pytest_vmfest.progress import Step
from pytest_vmfest.reaper import driver_of, reap, reap_dead
from pytest_vmfest.waiting import Deadline
from pytest_vmfest.warm.templates import tidy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.progress import Progress

_ROOM_POLL_S = 0.3
_TRIES_UNTIL_REAPING = 20


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
        self._reserved: set[str] = set()
        self.when_full: Callable[[], bool] = lambda: False
        """Called when there is no room; may remove what can be done without, and says whether it did."""
        self._lock = threading.RLock()  # to reap is to remove, which is told to us

    def make_room(self, sizes: Mapping[str, int], patience_s: float, *, spare: bool = False) -> None:
        """Reserve memory, in MiB, for machines by name; wait for it while other processes' machines have it.

        Either for all of them or for none. Where this process's own machines have so much that waiting would
        never end, it goes on, and says so, except for a ``spare``, which could be done without. Raises
        `WaitTimeoutError` when memory was not free in time.
        """
        deadline, tries = Deadline(patience_s), 0
        may_exceed = False
        while (full := self._try_to_make_room(sizes, may_exceed=may_exceed)) is not None:
            if not spare and (self.when_full() or not may_exceed):
                may_exceed = True  # what could be done without is gone now
                continue
            if deadline.expired:
                raise WaitTimeoutError(
                    f"no room for {full}, for {patience_s:g} s",
                    hint="use fewer workers (-n), or remove machines that were kept: vmfest instance list",
                )
            if tries == 0:
                self._progress(Step("memory", f"waiting for {full}"))
            tries += 1
            if tries % _TRIES_UNTIL_REAPING == 0:
                self._reap_dead()
            time.sleep(_ROOM_POLL_S)

    def _try_to_make_room(self, sizes: Mapping[str, int], *, may_exceed: bool) -> str | None:
        """Reserve memory if it is free; else say how much is wanted and in use.

        With ``may_exceed``, also if waiting would never end.
        """
        wanted, limit = sum(sizes.values()), limit_mib()
        with self._lock:
            ours = self._guarded()
            with ours.room():
                own = sum(ours.entries().machines.values())
                used = own + sum(
                    _memory_mib(ledger)
                    for ledger in Ledger.all(self._driver.settings.home)
                    if ledger.path != ours.path
                )
                alone = may_exceed and own + wanted > limit
                if used + wanted <= limit or alone:
                    for name, memory_mib in sizes.items():
                        ours.add(Kind.MACHINE, name, memory_mib)
                        self._reserved.add(name)
                    if alone:
                        text = (
                            f"{own + wanted} MiB for own machines; machines should have {limit} MiB at most"
                        )
                        self._progress(Step("memory", text))
                    return None
        what = f"{len(sizes)} machines with {wanted} MiB" if len(sizes) > 1 else f"{wanted} MiB"
        return f"{what} of memory; {used} MiB of {limit} MiB are in use by machines"

    def has_room(self, memory_mib: int) -> bool:
        """Whether a machine with so much memory would have to wait for nobody, as things are now."""
        with self._lock:
            ledgers = {one.path: one for one in Ledger.all(self._driver.settings.home)}
            if (ours := self._written()) is not None:
                ledgers[ours.path] = ours
            return sum(map(_memory_mib, ledgers.values())) + memory_mib <= limit_mib()

    def give_back(self, names: Iterable[str]) -> None:
        """Reserve no memory any more for those of the machines that were not even begun."""
        with self._lock:
            for name in self._reserved.intersection(names):
                self._reserved.remove(name)
                self.is_gone(Kind.MACHINE, name)

    def will_make(self, kind: Kind, name: str, memory_mib: int = 0) -> bool:
        """Write down what is about to be made, once a guardian watches. Raises `StoreError`.

        Says whether nothing of that name was made before.
        """
        with self._lock:
            ledger = self._guarded()
            if name in self._reserved:
                self._reserved.remove(name)
                return True
            if kind is Kind.MACHINE and name in ledger.entries().machines:
                return False
            ledger.add(kind, name, memory_mib)
            return True

    def is_gone(self, kind: Kind, name: str) -> None:
        """Write down that it was removed."""
        with suppress(StoreError):  # who reaps it finds nothing, and that is fine
            self._cross_out(kind, name)

    def release(self, machine: str) -> None:
        """Own a machine no longer: it stays. Raises `StoreError`: then it goes with this process."""
        self._cross_out(Kind.MACHINE, machine)

    def keep(self, machine: str, for_s: float) -> None:
        """Let a machine live for so many seconds, also when this process has ended. Raises `StoreError`."""
        with self._lock:
            if (ledger := self._written()) is not None:
                ledger.keep(machine, time.time() + for_s)

    def settle(self) -> None:
        """Remove all that is still there and not kept; `DestroyError` tells what cannot be.

        That is then left to the guardian, who tries again when this process has ended. In a process that was
        forked from the owner this does nothing.
        """
        with self._lock:
            if self._ledger is None or self._owner.process.pid != os.getpid():
                return
            if reap(self._ledger, self._driver, self._owner).kept:
                self._ledger.settle()
            guardian.dismiss(self._guardian)
            self._ledger = self._guardian = None

    def _cross_out(self, kind: Kind, name: str) -> None:
        with self._lock:
            if (ledger := self._written()) is not None:
                ledger.cross_out(kind, name)

    def _written(self) -> Ledger | None:
        """The ledger, if there is one yet."""
        return self._ledger

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
            self._ledger = self._begin(self._driver.settings.home)
        if self._guardian is None or not self._guardian.alive:
            # Of a shared one, another worker may have armed it.
            self._guardian = self._ledger.guardian()
        if self._guardian is None or not self._guardian.alive:
            if self._guardian is not None:
                self._progress(Step("guardian", "it was killed; another one watches now"))
            try:
                self._guardian = guardian.arm(self._ledger)
            except (OSError, StoreError) as error:
                if not self._ledger.entries():
                    self._ledger.remove()
                    self._ledger = None
                raise StoreError(f"no machine is made, as its guardian does not start: {error}") from error
        return self._ledger

    def _begin(self, home: Path) -> Ledger:
        return Ledger.begin(home, self._owner)

    def _reap_dead(self) -> None:
        for reaped in reap_dead(self._driver.settings.home):
            if reaped.removed:
                names = ", ".join(reaped.removed)
                self._progress(Step("leftovers", f"{names} had been left by another run: removed"))
            if reaped.error:
                self._progress(Step("leftovers", reaped.error))
        with suppress(VmfestError, OSError):
            tidy(self._driver.settings.home)


def _memory_mib(ledger: Ledger) -> int:
    """What the machines of somebody else's ledger have; nothing, if it cannot be read."""
    try:
        return sum(ledger.entries().machines.values())
    except OSError:
        return 0


class SharedOwnership(Ownership):
    """What workers of a run make for all of them: it belongs to their controller, and ends with that.

    All have one ledger; whoever is about to make something holds a lock on it. See `settle_shared`.
    """

    def __init__(
        self, driver: Driver, tags: Mapping[str, str], *, controller: Process, progress: Progress
    ) -> None:
        """``tags`` say which run."""
        super().__init__(driver, tags, parent=None, progress=progress)
        self._controller = controller

    def settle(self) -> None:
        """It goes on, for the others."""

    def _written(self) -> Ledger | None:
        """The ledger, whoever has begun it."""
        ledger = Ledger.shared(self._driver.settings.home, self.tags["run"], self._driver.name)
        return ledger if ledger.path.exists() else None

    @cached_property
    def _owner(self) -> Owner:
        return Owner(self._driver.name, self._driver.settings.as_json(), self.tags, self._controller)

    def _begin(self, home: Path) -> Ledger:
        ledger = Ledger.shared(home, self.tags["run"], self._driver.name)
        self.tags = ledger.join(self._owner).tags
        return ledger


def settle_shared(home: Path, run: str) -> None:
    """In the controller: remove what the workers of a run shared, and did not keep. Raises `DestroyError`."""
    for ledger in Ledger.all_shared(home, run):
        if (owner := ledger.owner()) is not None:
            driver, watching = driver_of(owner), ledger.guardian()
            try:
                if reap(ledger, driver, owner).kept:
                    ledger.settle()
                guardian.dismiss(watching)
            finally:
                driver.close()
    Ledger.forget_shared(home, run)
