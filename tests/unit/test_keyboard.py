"""Keyboard input as strokes."""

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.keyboard import KEYS, Stroke, parse_keys


def test_text_is_typed_on_a_us_layout():
    """Small letters plain, capitals and upper signs with shift."""
    assert parse_keys("aA1!/?\n") == [
        Stroke(("a",)),
        Stroke(("shift", "a")),
        Stroke(("1",)),
        Stroke(("shift", "1")),
        Stroke(("slash",)),
        Stroke(("shift", "slash")),
        Stroke(("ret",)),
    ]


def test_all_of_printable_ascii_can_be_typed():
    """No printable ASCII character is missing, and all use known keys."""
    strokes = parse_keys("".join(map(chr, range(32, 127))))
    assert len(strokes) == 95
    assert {key for stroke in strokes for key in stroke.keys} <= KEYS
    assert len(set(strokes)) == 95


def test_chords_and_pauses():
    """Angle brackets hold a chord, with everyday names allowed; a number is a pause."""
    assert parse_keys("<ctrl+alt+Delete>", 0.5, "<enter>", "<F12>") == [
        Stroke(("ctrl", "alt", "delete")),
        Stroke(pause_s=0.5),
        Stroke(("ret",)),
        Stroke(("f12",)),
    ]


def test_a_lone_angle_bracket_is_text():
    """`<` and `<>` are typed as they are."""
    assert parse_keys("<>") == [Stroke(("shift", "comma")), Stroke(("shift", "dot"))]


@pytest.mark.parametrize(("given", "message"), [("<hyper+x>", "'hyper'"), ("ä", "'ä'"), (-1, "pause of -1")])
def test_what_no_keyboard_has(given, message):
    """Unknown keys, characters outside the layout and negative pauses are refused by name."""
    with pytest.raises(ConfigurationError, match=message):
        parse_keys(given)
