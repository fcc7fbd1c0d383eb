"""Spares: nodes that are made before a test asks for them, while others run."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import VmfestError, WaitTimeoutError
from pytest_vmfest.progress import Step
from pytest_vmfest.startup import GivenUpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.node import Node
    from pytest_vmfest.progress import Progress

# A host that has no room now is asked again after so long.
_ROOM_POLL_S = 2.0
# A launch that is given up ends as soon as it looks; its machine is removed by its owner otherwise.
_GIVEN_UP_S = 10.0


@dataclass(frozen=True)
class Kind:
    """What makes nodes interchangeable, and how one is made.

    ``launch`` is given an event, which is set when the node is wanted no more: `GivenUpError` is fine then.
    """

    key: str
    launch: Callable[[threading.Event], Node]
    has_room: Callable[[], bool]
    """Whether the host has memory for one without making anybody wait."""


class Spares:
    """Keeps up to so many nodes ready, of the kind that was asked for last; one is made at a time."""

    def __init__(self, count: int, news: Progress) -> None:
        """``news`` is told, once for each kind, why there are none."""
        self._count = count
        self._news = news
        self._ready: list[tuple[str, Node]] = []
        self._wanted: Kind | None = None
        self._hopeless: set[str] = set()
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, key: str) -> Node | None:
        """A node of that kind, if one is ready and well."""
        began, began_epoch = time.monotonic(), time.time()
        while True:
            with self._changed:
                found = next((spare for spare in self._ready if spare[0] == key), None)
                if found is None:
                    return None
                self._ready.remove(found)
            node = found[1]
            if _is_well(node):
                node.began, node.timings = began_epoch, {"spare": time.monotonic() - began}
                return node
            _remove(node)

    def want(self, kind: Kind) -> None:
        """From now on have nodes of this kind ready."""
        with self._changed:
            self._wanted = kind
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vmfest-spares", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Make no more, and remove those that nobody has taken."""
        with self._changed:
            self._over.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_GIVEN_UP_S)
        for _, node in self._ready:
            _remove(node)
        self._ready.clear()

    def _work(self) -> None:
        while (kind := self._next()) is not None:
            try:
                node = kind.launch(self._over)
            except GivenUpError:
                return
            except WaitTimeoutError:  # somebody else was quicker to take the room
                self._over.wait(_ROOM_POLL_S)
                continue
            except VmfestError as error:
                self._hopeless.add(kind.key)
                self._news(Step("spares", f"none of this kind: {error.message}"))
                continue
            with self._changed:
                if not self._over.is_set():
                    self._ready.append((kind.key, node))
                    continue
            _remove(node)

    def _next(self) -> Kind | None:
        """The kind to make one of, as soon as there is need and room; None when all is over."""
        while not self._over.is_set():
            surplus = None
            with self._changed:
                kind = self._wanted
                have = sum(key == kind.key for key, _ in self._ready) if kind else 0
                if kind is None or have >= self._count or kind.key in self._hopeless:
                    self._changed.wait()
                    continue
                if len(self._ready) >= self._count:
                    surplus = next(spare for spare in self._ready if spare[0] != kind.key)
                    self._ready.remove(surplus)
            if surplus is not None:
                _remove(surplus[1])
            elif kind.has_room():
                return kind
            else:
                self._over.wait(_ROOM_POLL_S)
        return None


def _is_well(node: Node) -> bool:
    try:
        return node.instance.state is MachineState.RUNNING and node.is_connected
    except VmfestError:
        return False


def _remove(node: Node) -> None:
    with suppress(VmfestError):  # its owner knows of it, and tries again at the end
        node.destroy()
