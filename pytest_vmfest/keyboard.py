"""Keyboard input in a form that every driver can send: strokes of named keys, and pauses.

Key names are QEMU's qcodes (https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html, ``QKeyCode``),
with a few everyday names besides.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vmfest.errors import ConfigurationError


@dataclass(frozen=True)
class Stroke:
    """Keys pressed together and released in reverse order, or, without keys, a pause of ``pause_s``."""

    keys: tuple[str, ...] = ()
    pause_s: float = 0.0


_ALIASES = {
    "enter": "ret", "return": "ret", "escape": "esc", "del": "delete", "ins": "insert", "space": "spc",
    "win": "meta_l", "super": "meta_l", "control": "ctrl", "pageup": "pgup", "pagedown": "pgdn",
    "printscreen": "print", "capslock": "caps_lock", "numlock": "num_lock", "scrolllock": "scroll_lock",
}  # fmt: skip

_NAMED = """
    shift shift_r alt alt_r ctrl ctrl_r meta_l meta_r menu esc minus equal backspace tab
    bracket_left bracket_right ret semicolon apostrophe grave_accent backslash comma dot slash spc
    caps_lock num_lock scroll_lock sysrq print pause home pgup pgdn end left up down right insert delete
    less kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal
    kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9
    f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 f11 f12
"""
KEYS = frozenset([*_NAMED.split(), *"abcdefghijklmnopqrstuvwxyz0123456789"])

# The US layout: characters typed without and with shift.
_PLAIN = {
    " ": "spc", "\n": "ret", "\t": "tab", "\b": "backspace", "-": "minus", "=": "equal",
    "[": "bracket_left", "]": "bracket_right", ";": "semicolon", "'": "apostrophe", "`": "grave_accent",
    "\\": "backslash", ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
_SHIFTED = {
    **dict(zip(")!@#$%^&*(", "0123456789", strict=True)),
    "_": "minus", "+": "equal", "{": "bracket_left", "}": "bracket_right", ":": "semicolon",
    '"': "apostrophe", "~": "grave_accent", "|": "backslash", "<": "comma", ">": "dot", "?": "slash",
}  # fmt: skip


def parse_keys(*inputs: str | float) -> list[Stroke]:
    """Strokes for a sequence of inputs.

    A string is typed on a US layout, unless it is a chord in angle brackets; a number is a pause in seconds.

    >>> parse_keys("ok", "<enter>", 0.5, "<ctrl+alt+f2>")[-2:]
    [Stroke(keys=(), pause_s=0.5), Stroke(keys=('ctrl', 'alt', 'f2'), pause_s=0.0)]

    Raises `ConfigurationError` for a key that does not exist or a character that the layout does not have.
    """
    strokes: list[Stroke] = []
    for one in inputs:
        if isinstance(one, int | float):
            if one < 0:
                raise ConfigurationError(f"a pause of {one} s is not possible")
            strokes.append(Stroke(pause_s=float(one)))
        elif len(one) > 2 and one.startswith("<") and one.endswith(">"):
            strokes.append(_chord(one))
        else:
            strokes.extend(_typed(char) for char in one)
    return strokes


def _chord(text: str) -> Stroke:
    names = [_ALIASES.get(name, name) for name in text[1:-1].lower().split("+")]
    for name in names:
        if name not in KEYS:
            raise ConfigurationError(
                f"unknown key {name!r} in {text!r}",
                hint="keys are named as in QEMU's QKeyCode, joined by +, such as <ctrl+alt+delete>",
            )
    return Stroke(tuple(names))


def _typed(char: str) -> Stroke:
    if char in _PLAIN:
        return Stroke((_PLAIN[char],))
    if char in _SHIFTED:
        return Stroke(("shift", _SHIFTED[char]))
    if char.lower() in KEYS:
        return Stroke(("shift", char.lower())) if char.isupper() else Stroke((char,))
    raise ConfigurationError(f"the US keyboard layout has no key for {char!r}")
