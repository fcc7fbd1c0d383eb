"""Ending in order: signals that unwind the stack, and clean-ups that no further signal breaks off.

Only Python's main thread receives signals; elsewhere all of this does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

# SIGALRM ends a test: it is pytest-timeout's.
_BREAKING_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def end_by(leave: Callable[[int], object]) -> Callable[[], None]:
    """Let the first SIGTERM or SIGHUP call ``leave`` with its number, and ignore those that follow.

    ``leave`` raises what unwinds the stack. A signal that somebody else has set up is left alone: nohup
    ignores SIGHUP. Returns what puts everything back.
    """
    taken: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        for one in taken:
            # Not SIG_IGN, which programs that are started from here on would inherit.
            signal.signal(one, _ignore)
        leave(number)

    def restore() -> None:
        for one in taken:
            if signal.getsignal(one) in (handle, _ignore):
                signal.signal(one, signal.SIG_DFL)
        taken.clear()

    if _in_main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handle)
                taken.append(number)
    return restore


@contextmanager
def held_back() -> Iterator[None]:
    """Hold back signals that would end process or test; they take effect when the block is left."""
    if not _in_main_thread():
        yield
        return
    came: dict[int, None] = {}
    undo: list[Callable[[], object]] = []
    try:
        for number in _BREAKING_OFF:
            # None: set up by other means than Python's, which cannot put it back.
            undo.append(partial(signal.signal, number, signal.getsignal(number) or signal.SIG_DFL))
            signal.signal(number, lambda number, frame: came.update({number: None}))
        yield
    finally:
        _all_of([*undo, lambda: _all_of([partial(os.kill, os.getpid(), number) for number in came])])


def _all_of(actions: Sequence[Callable[[], object]]) -> None:
    """Call all, although a signal may raise in between."""
    if actions:
        try:
            actions[0]()
        finally:
            _all_of(actions[1:])


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
