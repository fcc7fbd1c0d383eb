"""Running the host's programs: output, time limits, and nothing left over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.tools import run
from pytest_vmfest.waiting import Deadline, wait_for


def test_output_of_both_streams_comes_back():
    """What a program prints on either stream is returned, in order."""
    assert run(["sh", "-c", "echo one; echo two >&2; echo three"], timeout_s=10) == "one\ntwo\nthree\n"


def test_input_and_environment_are_passed_on():
    """The program reads the given text, and sees the given variables beside those of this process."""
    output = run(
        ["sh", "-c", 'cat; echo "$WORD $HOME"'], timeout_s=10, stdin="in\n", environment={"WORD": "w"}
    )
    assert output == f"in\nw {os.environ['HOME']}\n"


def test_programs_of_administrators_are_found_by_ordinary_users(monkeypatch):
    """Where PATH has no sbin, as for Debian's ordinary users, a program still finds those in there."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert run(["sh", "-c", "command -v mke2fs"], timeout_s=10).strip().endswith("sbin/mke2fs")


def test_failure_tells_the_last_lines():
    """The error names the program and its status and keeps the end of what it printed, not all of it."""
    with pytest.raises(ImageBuildError, match="sh failed with status 3") as caught:
        run(["sh", "-c", "seq 100; echo broken >&2; exit 3"], timeout_s=10)
    lines = caught.value.log.splitlines()
    assert lines[-2:] == ["100", "broken"]
    assert "50" not in lines


def test_missing_program_is_named():
    """A program that is not installed is told with the way to install it."""
    with pytest.raises(ImageBuildError, match="no-such-program is not installed") as caught:
        run(["no-such-program"], timeout_s=10)
    assert "doctor" in caught.value.hint


def test_time_limit_ends_all_that_was_started():
    """A program that takes too long is killed with its children, and the error says so."""
    with pytest.raises(ImageBuildError, match=r"did not end within 0\.5 s") as caught:
        run(["sh", "-c", "sleep 60 & echo $!; wait"], timeout_s=0.5)
    assert_ended(int(caught.value.log))


def test_exception_meanwhile_ends_all_that_was_started():
    """An interrupt while the program runs is passed on after the program and its children were killed."""
    heard = []

    def interrupt(text):
        if text.endswith("\n"):
            heard.append(text)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "sleep 60 & echo $!; wait"], timeout_s=30, watch=interrupt)
    assert_ended(int(heard[0]))


def test_program_ends_with_a_killed_parent(tmp_path):
    """Even kill -9 of the building process leaves no program running."""
    pid_file = tmp_path / "pid"
    code = (
        "from pytest_vmfest.images.recipes.tools import run\n"
        f"run(['sh', '-c', 'echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60'],"
        " timeout_s=60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(pid_file.exists, Deadline(20), what="the program's start")
        parent.send_signal(signal.SIGKILL)
    assert_ended(int(pid_file.read_text()))


def assert_ended(pid):
    """Wait a moment for a process to be gone, or to wait for burial by whoever inherited it."""

    def ended():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_for(ended, Deadline(5), what=f"the end of process {pid}")
