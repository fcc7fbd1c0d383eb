"""What a resumed guest is told, and the program that it is told by, which runs on this host, too."""

import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from pytest_vmfest.warm import mending


@pytest.fixture
def mend(tmp_path):
    """Runs the program here; without arguments of its own it changes nothing."""
    path = tmp_path / "mend"
    path.write_bytes(mending.program())
    path.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([path, *arguments], capture_output=True, timeout=10, check=False)

    return run


def test_it_tells_the_time(mend):
    """Seconds and nanoseconds of the clock, as two numbers."""
    before = time.time_ns()
    seconds, nanoseconds = struct.unpack("<qq", mend("0", "0", "").stdout)
    assert before <= seconds * 10**9 + nanoseconds <= time.time_ns()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("0",),
        ("0", "0"),
        ("0", "0", "", ""),
        ("", "0", ""),
        ("x", "0", ""),
        ("0", "1x", ""),
        ("0x", "0", ""),
    ],
)
def test_wrong_arguments(mend, arguments):
    """They are refused, and nothing is told."""
    done = mend(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_kernel_that_refuses(mend):
    """A clock that may not be set, or a number that no clock has, is an error."""
    done = mend("0", "1000001", "")
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_program_is_what_its_source_says(tmp_path):
    """What is shipped is what binutils make of it."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("there are no binutils here")
    source = Path(mending.__file__).with_name("mend.S")
    commands = re.findall(r"^#   ((?:as|ld) .*)$", source.read_text(), re.MULTILINE)
    shutil.copy(source, tmp_path)
    for command in commands:
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    assert (tmp_path / "mend.bin").read_bytes() == mending.program()


@pytest.mark.parametrize(
    ("late_s", "arguments"),
    [(0, "0 0"), (1.25, "1 250000"), (3600.000001, "3600 1"), (-0.25, "-1 750000"), (-2, "-2 0")],
)
def test_how_late_a_guest_is(late_s, arguments):
    """Seconds may be negative, microseconds are not."""
    assert mending.mend_command(late_s, "text") == f"{mending.MENDER} {arguments} 'text'"


def test_each_guest_is_told_something_else():
    """No two get the same random text or machine-id."""
    found = [set(re.findall(r"[0-9a-f]{32,}", mending.script(1.0))) for _ in range(2)]
    assert len(found[0]) == 2
    assert not found[0] & found[1]


def test_a_guest_whose_lateness_is_not_known():
    """It is told the time to a second, and its random numbers are made its own."""
    first, mend, _ = mending.wake_script(None).splitlines()
    assert re.fullmatch(r"date -u -s @\d{10,} > /dev/null", first)
    assert re.match(rf"{mending.MENDER} 0 0 '[0-9a-f]{{64}}'", mend)


def test_the_clock_is_set_by_the_quickest_reading():
    """Of several, and once; a guest without the program is left as it is."""
    said = []

    def run(text):
        said.append(text)
        return struct.pack("<qq", int(time.time()) - 100, 0)

    mending.set_clock(run)
    *readings, last = said
    assert set(readings) == {mending.mend_command()}
    assert 99 <= int(last.split()[1]) <= 102
    said.clear()
    mending.set_clock(lambda text: said.append(text) or b"")
    assert len(said) == 1


def test_the_clock_that_was_told(mend):
    """As the program writes it; other commands may have written before it ran in vain."""
    assert mending.clock_of(mend("0", "0", "").stdout + b"more") == pytest.approx(time.time(), abs=5)
    assert mending.clock_of(b"") is None


def test_the_script_is_one_for_every_shell():
    """It is POSIX shell text."""
    done = subprocess.run(
        ["sh", "-n"], input=mending.script(0.5), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
