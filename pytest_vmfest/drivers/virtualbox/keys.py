"""Keys as the scan codes of a PC keyboard (set 1), for which VirtualBox asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RELEASED = 0x80
_EXTENDED = 0xE0

_IN_ROWS = {
    0x01: "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab",
    0x10: "q w e r t y u i o p bracket_left bracket_right ret ctrl",
    0x1E: "a s d f g h j k l semicolon apostrophe grave_accent shift backslash",
    0x2C: "z x c v b n m comma dot slash shift_r kp_multiply alt spc caps_lock",
    0x3B: "f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num_lock scroll_lock",
    0x47: "kp_7 kp_8 kp_9 kp_subtract kp_4 kp_5 kp_6 kp_add kp_1 kp_2 kp_3 kp_0 kp_decimal",
    0x56: "less f11 f12",
}
_BEHIND_E0 = {
    "kp_enter": 0x1C, "ctrl_r": 0x1D, "kp_divide": 0x35, "print": 0x37, "alt_r": 0x38, "home": 0x47,
    "up": 0x48, "pgup": 0x49, "left": 0x4B, "right": 0x4D, "end": 0x4F, "down": 0x50, "pgdn": 0x51,
    "insert": 0x52, "delete": 0x53, "meta_l": 0x5B, "meta_r": 0x5C, "menu": 0x5D,
}  # fmt: skip

_CODES: dict[str, tuple[int, ...]] = {
    **{key: (first + i,) for first, keys in _IN_ROWS.items() for i, key in enumerate(keys.split())},
    **{key: (_EXTENDED, code) for key, code in _BEHIND_E0.items()},
    "sysrq": (0x54,),
}
# It has no code for its release: what it sends when pressed contains it.
_PAUSE = (0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5)


def pressed(key: str) -> tuple[int, ...]:
    """What the keyboard sends when a key, named as in `keyboard.KEYS`, goes down.

    >>> pressed("a"), pressed("left")
    ((30,), (224, 75))
    """
    if key == "pause":
        return _PAUSE
    try:
        return _CODES[key]
    except KeyError:
        raise ConfigurationError(f"a PC keyboard has no key {key!r}") from None


def released(key: str) -> tuple[int, ...]:
    """What the keyboard sends when a key goes up again."""
    if key == "pause":
        return ()
    *prefix, code = pressed(key)
    return (*prefix, code | _RELEASED)


def chord_down(keys: Sequence[str]) -> list[int]:
    """What pressing several keys one after the other sends."""
    return [code for key in keys for code in pressed(key)]


def chord_up(keys: Sequence[str]) -> list[int]:
    """What letting go of them in reverse order sends."""
    return [code for key in reversed(keys) for code in released(key)]
