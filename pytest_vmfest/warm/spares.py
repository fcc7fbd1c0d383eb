"""Spares: nodes that are made before a test asks for them, while others run."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import VmfestError, WaitTimeoutError
from pytest_vmfest.progress import Step
from pytest_vmfest.startup import GivenUpError
from pytest_vmfest.waiting import Cancellation

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.node import Node
    from pytest_vmfest.progress import Progress

# A host that has no room now is asked again after so long.
_ROOM_POLL_S = 2.0
# One that nobody has taken for so long gives its memory back: another process may wait for that.
_IDLE_S = 60.0
# A launch that is given up ends as soon as it looks; its machine is removed by its owner otherwise.
_GIVEN_UP_S = 10.0


@dataclass(frozen=True)
class Kind:
    """What makes nodes interchangeable, and how one is made.

    ``launch`` is given a `Cancellation`, after which `GivenUpError` is fine.
    """

    key: str
    launch: Callable[[Cancellation], Node]
    has_room: Callable[[], bool]
    """Whether the host has memory for one without making anybody wait."""


@dataclass(frozen=True)
class _Spare:
    key: str
    node: Node
    since: float


class Spares:
    """Keeps up to so many nodes ready, of the kind that was asked for last; one is made at a time.

    In a process that was forked from its own there are none.
    """

    def __init__(self, count: int, news: Progress) -> None:
        """``news`` is told, once for each kind, why there are none: in a call, never by another thread."""
        self._count = count
        self._news = news
        self._ready: list[_Spare] = []
        self._wanted: Kind | None = None
        self._hopeless: set[str] = set()
        self._untold: deque[str] = deque()
        self._changed = threading.Condition()
        self._over = Cancellation()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def take(self, key: str) -> Node | None:
        """A node of that kind, if one is ready and well."""
        if self._is_fork():
            return None
        began, began_epoch = time.monotonic(), time.time()
        self._tell()
        while True:
            with self._changed:
                found = next((spare for spare in self._ready if spare.key == key), None)
                if found is None:
                    return None
                self._ready.remove(found)
            if _is_well(found.node):
                found.node.began, found.node.timings = began_epoch, {"spare": time.monotonic() - began}
                return found.node
            _remove(found)

    def want(self, kind: Kind) -> None:
        """From now on have nodes of this kind ready."""
        if self._is_fork():
            return
        self._tell()
        with self._changed:
            self._wanted = kind
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vmfest-spares", daemon=True)
                self._thread.start()
            self._changed.notify()

    def give_back(self) -> bool:
        """Remove those that are ready, as somebody needs the room; whether there were any.

        There will be none until a kind is wanted again.
        """
        if self._is_fork():
            return False
        with self._changed:
            self._wanted = None
            given, self._ready = self._ready, []
        for spare in given:
            _remove(spare)
        return bool(given)

    def close(self) -> None:
        """Make no more, and remove those that nobody has taken."""
        if self._is_fork():
            return
        self._over.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_GIVEN_UP_S)
        self.give_back()
        self._tell()

    def _is_fork(self) -> bool:
        # It has no thread that makes any, and the machines are its parent's.
        return os.getpid() != self._pid

    def _work(self) -> None:
        while (kind := self._next()) is not None:
            try:
                node = kind.launch(self._over)
            except GivenUpError:
                return
            except WaitTimeoutError:  # somebody else was quicker to take the room
                self._over.wait(_ROOM_POLL_S)
                continue
            except Exception as error:
                self._hopeless.add(kind.key)
                self._untold.append(f"none of this kind: {error}")
                continue
            spare = _Spare(kind.key, node, time.monotonic())
            with self._changed:
                if not self._over.is_set() and self._wanted is not None:
                    self._ready.append(spare)
                    continue
            _remove(spare)

    def _next(self) -> Kind | None:
        """The kind to make one of, as soon as there is need and room; None when all is over."""
        while not self._over.is_set():
            with self._changed:
                kind, surplus = self._wanted, self._surplus()
                if surplus is not None:
                    self._ready.remove(surplus)
                elif kind is None or len(self._ready) >= self._count or kind.key in self._hopeless:
                    self._changed.wait(_ROOM_POLL_S)
                    continue
            if surplus is not None:
                _remove(surplus)
            elif kind is not None and kind.has_room():
                return kind
            else:
                self._over.wait(_ROOM_POLL_S)
        return None

    def _surplus(self) -> _Spare | None:
        """One to be removed: of a kind that is wanted no more where there are too many, or idle for long."""
        idle = [spare for spare in self._ready if time.monotonic() - spare.since > _IDLE_S]
        if idle:
            self._wanted = None  # nobody has taken one for so long
            return idle[0]
        key = self._wanted.key if self._wanted else None
        others = [spare for spare in self._ready if spare.key != key]
        return others[0] if others and len(self._ready) >= self._count else None

    def _tell(self) -> None:
        while self._untold:
            self._news(Step("spares", self._untold.popleft()))


def _is_well(node: Node) -> bool:
    try:
        return node.instance.state is MachineState.RUNNING and node.is_connected
    except VmfestError:
        return False


def _remove(spare: _Spare) -> None:
    with suppress(VmfestError):  # its owner knows of it, and tries again at the end
        spare.node.destroy()
