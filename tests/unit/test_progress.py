"""Progress as lines of text."""

import pytest

from pytest_vmfest import progress
from pytest_vmfest.progress import LineProgress, Step

MIB = 1 << 20


@pytest.fixture
def lines():
    """The lines that were written."""
    return []


def test_a_step_without_measure_is_told_once(lines, monkeypatch):
    """Repeating it is no news, however long it takes; the next step is."""
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    tell = LineProgress(lines.append)
    for text in ("unpacking", "unpacking", "writing", "unpacking"):
        tell(Step("image tiny", text))
    assert lines == ["image tiny: unpacking", "image tiny: writing", "image tiny: unpacking"]


def test_a_step_that_counts_is_told_again_now_and_then(lines, monkeypatch):
    """Its first news comes at once, the others only after a while, with how much is done."""
    tell = LineProgress(lines.append)
    for done in (1, 2, 3):
        tell(Step("image tiny", "downloading", done * MIB, 4 * MIB))
    assert lines == ["image tiny: downloading 1 of 4 MiB (25 %)"]
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    tell(Step("image tiny", "downloading", 4 * MIB, 4 * MIB))
    assert lines[1:] == ["image tiny: downloading 4 of 4 MiB (100 %)"]
