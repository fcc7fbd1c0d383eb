"""What the command line shows, in a terminal and elsewhere."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vmfest.cli import show
from pytest_vmfest.cli.units import age, size
from pytest_vmfest.progress import LineProgress, Step


def in_terminal(code: str) -> str:
    """What a Python program prints whose standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", code]
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        # Reading a terminal that nobody has open any more is an I/O error on Linux.
        try:
            while data := os.read(ours, 65536):
                text += data
        except OSError:
            pass
        os.close(ours)
    assert process.returncode == 0, text.decode()
    return text.decode()


def test_table_is_aligned_text_where_there_is_no_terminal(capsys):
    """Piped, a table is text in columns, without frame, colour or trailing blanks."""
    show.table(("name", "state"), [("a", "running"), ("longer", "off")])
    assert capsys.readouterr().out == "NAME    STATE\na       running\nlonger  off\n"


def test_table_in_a_terminal_is_framed():
    """In a terminal, the table has a line under its head, and takes cells as they are, not as markup."""
    text = in_terminal(
        "from pytest_vmfest.cli import show\nshow.table(('name', 'state'), [('vm [red]x', 'running')])"
    )
    assert "vm [red]x" in text
    assert "─" in text


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 40, "3.0 TiB")]
)
def test_size(count, expected):
    """Bytes are told in the largest unit that leaves a whole."""
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_age(monkeypatch, seconds, expected):
    """An age is told in its largest unit; a clock that was set back makes nothing negative."""
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    assert age(1_000_000.0 - seconds) == expected


def test_mark_falls_back_to_words(monkeypatch):
    """Where the output's encoding has no check mark, a word stands in its place."""
    with Path(os.devnull).open("w", encoding="ascii") as plain:
        monkeypatch.setattr(sys, "stdout", plain)
        assert "ok" in show.mark(True)
        assert "NO" in show.mark(False)


def test_line_progress_tells_a_counting_step_now_and_then(monkeypatch):
    """A new step is told at once, one that only counts on every few seconds, with its share."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    told: list[str] = []
    progress = LineProgress(told.append)
    for seconds, step in [
        (0, Step("image a", "downloading")),
        (1, Step("image a", "downloading", 1 << 20, 4 << 20)),
        (6, Step("image a", "downloading", 2 << 20, 4 << 20)),
        (6, Step("image a", "unpacking")),
    ]:
        now[0] = 100.0 + seconds
        progress(step)
    assert told == ["image a: downloading", "image a: downloading 2 of 4 MiB (50 %)", "image a: unpacking"]


def test_progress_without_a_terminal_is_lines_on_standard_error(capsys):
    """Piped, progress is plain lines, and standard output stays clean for the result."""
    with show.progress() as progress:
        progress(Step("image a", "unpacking"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "image a: unpacking\n")


def test_progress_in_a_terminal_shows_amounts_and_leaves_no_line():
    """In a terminal, the present step is shown with its amount, and the cursor comes back in the end."""
    text = in_terminal(
        "from pytest_vmfest.cli import show\n"
        "from pytest_vmfest.progress import Step\n"
        "with show.progress() as progress:\n"
        "    progress(Step('image a', 'down [loading]'))\n"
        "    progress(Step('image a', 'down [loading]', 1 << 20, 4 << 20))\n"
    )
    assert "image a: down [loading]" in text
    assert "1.0 MiB of 4.0 MiB" in text
    assert text.rstrip().endswith("\x1b[2K")  # the line is erased
    assert "\x1b[?25h" in text  # the cursor is shown again
