"""The console's text over a machine's starts."""

from pytest_vmfest.drivers.virtualbox import console


def test_what_earlier_starts_wrote_comes_first(tmp_path):
    """Each start's text is put aside before VirtualBox empties the file."""
    assert console.text(tmp_path) == ""
    for word in ("one ", "two ", "three"):
        console.begin(tmp_path)
        (tmp_path / console.FILE).write_text(word)
    assert console.text(tmp_path) == "one two three"


def test_a_start_that_wrote_nothing(tmp_path):
    """A start without a file before it puts nothing aside."""
    console.begin(tmp_path)
    console.begin(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text(tmp_path):
    """They do not hide the rest."""
    (tmp_path / console.FILE).write_bytes(b"a\xffb")
    assert console.text(tmp_path) == "a�b"
