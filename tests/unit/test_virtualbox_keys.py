"""Scan codes of a PC keyboard."""

import pytest

from pytest_vmfest.drivers.virtualbox import keys
from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.keyboard import KEYS


def test_every_key_has_a_code_of_its_own():
    """All keys that users can name can be pressed, and no two send the same."""
    assert len({keys.pressed(key) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    ("key", "down", "up"),
    [
        ("a", (0x1E,), (0x9E,)),
        ("f12", (0x58,), (0xD8,)),
        ("left", (0xE0, 0x4B), (0xE0, 0xCB)),
        ("ctrl_r", (0xE0, 0x1D), (0xE0, 0x9D)),
        ("pause", (0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5), ()),
    ],
)
def test_codes_by_the_book(key, down, up):
    """Plain keys have one byte, those of the 101-key keyboard a prefix; pause is never released."""
    assert keys.pressed(key) == down
    assert keys.released(key) == up


def test_every_key_but_pause_is_released():
    """A key that stays down would change all that is typed after it."""
    assert [key for key in KEYS if not keys.released(key)] == ["pause"]


def test_chords_are_released_in_reverse():
    """Of ctrl+alt+f2 the last is let go first."""
    assert keys.chord_down(["ctrl", "alt", "f2"]) == [0x1D, 0x38, 0x3C]
    assert keys.chord_up(["ctrl", "alt", "f2"]) == [0xBC, 0xB8, 0x9D]


def test_a_key_that_there_is_not():
    """It is named."""
    with pytest.raises(ConfigurationError, match="no key 'any'"):
        keys.pressed("any")
