"""Deadlines on the monotonic clock, and waiting for a condition until one passes."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from pytest_vmfest.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def all_within(timeout_s: float, *actions: Callable[[], object]) -> list[str]:
    """Call all at once, each in a thread of its own, and go on after ``timeout_s`` whatever has not ended.

    Returns for each in a few words why it came to nothing; empty if it did not. What has not ended is left
    to itself: that is for looks at things that may hang, not for work.

    >>> all_within(1, lambda: None, lambda: 1 / 0)
    ['', 'division by zero']
    """
    ends = [f"no answer within {timeout_s:g} s"] * len(actions)

    def act(number: int) -> None:
        try:
            actions[number]()
        except Exception as error:
            ends[number] = str(error) or type(error).__name__
        else:
            ends[number] = ""

    threads = [
        threading.Thread(target=act, args=(number,), name="vmfest-look", daemon=True)
        for number in range(len(actions))
    ]
    deadline = Deadline(timeout_s)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline.remaining_s)
    return list(ends)


class Cancellation:
    """Something is wanted no more: set once, by any thread, and told to whoever has asked to be told.

    >>> cancellation = Cancellation()
    >>> cancellation.when_set(lambda: print("told"))
    >>> cancellation.set()
    told
    >>> cancellation.is_set()
    True
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def set(self) -> None:
        """It is wanted no more; returns when all have been told."""
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        """Whether that has happened."""
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for it; whether it has happened."""
        return self._event.wait(timeout_s)

    def when_set(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` then, or now if it has happened already."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()


class Deadline:
    """A moment on the monotonic clock by which something must have happened.

    One deadline is made where the user's timeout is known and handed down through every call below, so
    that the parts of a start share one budget.

    >>> deadline = Deadline(30)
    >>> deadline.expired
    False
    """

    def __init__(self, timeout_s: float | None) -> None:
        """Expire ``timeout_s`` seconds from now; None never expires."""
        self.started = time.monotonic()
        self.timeout_s = timeout_s
        self._end = math.inf if timeout_s is None else self.started + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative; ``math.inf`` without a limit."""
        return max(0.0, self._end - time.monotonic())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the deadline was made."""
        return time.monotonic() - self.started

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() >= self._end

    def at_most(self, timeout_s: float) -> Deadline:
        """A new deadline for one part: ``timeout_s`` from now, but never later than this one."""
        return Deadline(min(timeout_s, self.remaining_s))

    def timeout(self) -> float | None:
        """Seconds left in the form that sockets and locks take: None without a limit."""
        return None if math.isinf(self._end) else self.remaining_s


def wait_for(
    condition: Callable[[], T],
    deadline: Deadline,
    *,
    what: str,
    interval_s: float = 0.05,
    watch: Callable[[], None] | None = None,
) -> T:
    """Call ``condition`` until it returns something true, and return that.

    ``watch`` is called before each try and may raise, to end a wait that can no longer succeed. The
    condition is tried at least once, also after the deadline. Raises `WaitTimeoutError` naming ``what``.

    >>> wait_for(lambda: "ready", Deadline(1), what="the answer")
    'ready'
    """
    while True:
        if watch is not None:
            watch()
        value = condition()
        if value:
            return value
        if deadline.expired:
            raise WaitTimeoutError(f"{what}: not within {deadline.timeout_s:g} s")
        time.sleep(min(interval_s, deadline.remaining_s))
