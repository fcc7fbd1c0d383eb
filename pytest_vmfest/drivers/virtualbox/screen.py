"""A running machine's screen and keyboard."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.virtualbox import keys
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtualbox.library import IConsole

    from pytest_vmfest.keyboard import Stroke

# Time for the guest to fetch a stroke: the keyboard keeps few.
_AFTER_STROKE_S = 0.02
_KEYBOARD_TIMEOUT_S = 10.0


def picture(console: IConsole, png_format: int) -> bytes:
    """The first screen as PNG; ``png_format`` is the API's number for that."""
    display = console.display._i
    width, height, *_ = display.getScreenResolution(0)
    taken: Any = display.takeScreenShotToArray(0, width, height, png_format)
    return taken.encode("latin-1") if isinstance(taken, str) else bytes(taken)


def type_keys(console: IConsole, strokes: Sequence[Stroke]) -> None:
    """Press and release keys in order; returns after the last release."""
    keyboard = console.keyboard
    for stroke in strokes:
        if stroke.keys:
            # In one go: a key whose release is late on a busy host would begin to repeat itself.
            _send(keyboard, [*keys.chord_down(stroke.keys), *keys.chord_up(stroke.keys)])
            time.sleep(_AFTER_STROKE_S)
        time.sleep(stroke.pause_s)


def _send(keyboard: Any, codes: list[int]) -> None:
    left = list(codes)

    def taken() -> bool:
        nonlocal left
        left = left[keyboard.put_scancodes(left) :] if left else left
        return not left

    wait_for(taken, Deadline(_KEYBOARD_TIMEOUT_S), what="the guest's keyboard to take keys", interval_s=0.01)
