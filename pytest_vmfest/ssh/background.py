"""Waiting for calls that know no deadline: they run in a thread of their own, and may be given up."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class OutOfTimeError(Exception):
    """The deadline has passed. Inside this package only: it becomes the error that fits the operation."""


class Call(Generic[T]):
    """A blocking call that has begun in a daemon thread.

    >>> call = Call(lambda: 6 * 7)
    >>> call.wait(1) and call.result()
    42
    """

    def __init__(self, function: Callable[[], T], *, dispose: Callable[[T], None] | None = None) -> None:
        """Begin the call. ``dispose`` is given the value if it comes after `give_up`."""
        self._function = function
        self._dispose = dispose
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._given_up = False
        self._values: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="vmfest-ssh", daemon=True).start()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the call to end; whether it has."""
        return self._ended.wait(timeout_s)

    def result(self) -> T:
        """The call's value, or its exception. Only after `wait` said that it has ended."""
        if self._error is not None:
            raise self._error
        return self._values[0]

    def give_up(self) -> None:
        """No longer want the value, which may be there already."""
        with self._lock:
            self._given_up = True
        self._clean_up()

    def _run(self) -> None:
        try:
            value = self._function()
        except BaseException as error:  # handed to the caller's thread
            self._error = error
        else:
            with self._lock:
                self._values.append(value)
            self._clean_up()
        self._ended.set()

    def _clean_up(self) -> None:
        with self._lock:
            if not (self._given_up and self._values and self._dispose):
                return
            dispose, self._dispose = self._dispose, None
        with contextlib.suppress(Exception):
            dispose(self._values[0])
