"""Ending in order: signals that unwind the stack, and clean-ups that no further signal breaks off.

Only Python's main thread receives signals; elsewhere all of this does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_by(leave: Callable[[int], object]) -> Callable[[], None]:
    """Let the first SIGTERM or SIGHUP call ``leave`` with its number, and ignore those that follow.

    ``leave`` raises what unwinds the stack. A signal that somebody else has set up is left alone: nohup
    ignores SIGHUP. Returns what puts everything back.
    """
    taken: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        for one in taken:
            signal.signal(one, signal.SIG_IGN)
        leave(number)

    def restore() -> None:
        for one in taken:
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
    """Hold back signals that would end the process; they take effect when the block is left."""
    if not _in_main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in _ENDING}
    try:
        yield
    finally:
        for held, handler in before.items():
            # None: set up by other means than Python's, which cannot put it back.
            signal.signal(held, signal.SIG_DFL if handler is None else handler)
        for number in dict.fromkeys(came):
            os.kill(os.getpid(), number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
