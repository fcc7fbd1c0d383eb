"""QEMU's processes: how they are started, and found again."""

import ast
import os
import shutil
import subprocess
import sys

import pytest

from pytest_vmfest.drivers.qemu.process import running_in, spawn
from pytest_vmfest.errors import DriverError
from pytest_vmfest.waiting import Deadline, wait_for


@pytest.fixture
def sleeper(tmp_path):
    """A process started by us; gone after the test."""
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["sleep", "60"], tmp_path, fds=(), log=log)
    yield process
    process.kill(10)


def test_a_program_that_cannot_be_run(tmp_path):
    """The error names it."""
    with (
        (tmp_path / "log").open("wb") as log,
        pytest.raises(DriverError, match="/no/such/qemu: No such file"),
    ):
        spawn(["/no/such/qemu"], tmp_path, fds=(), log=log)


def test_how_it_is_started(tmp_path):
    """In its folder, in a session of its own, with the descriptors and no others, printing to the log."""
    reader, writer = os.pipe()
    script = (
        "import os, sys; print(os.getcwd(), os.getsid(0) == os.getpid(), file=sys.stderr, flush=True);"
        f"print(sorted(os.listdir('/proc/self/fd'))); os.write({writer}, b'passed')"
    )
    with (tmp_path / "log").open("wb") as log:
        process = spawn([sys.executable, "-c", script], tmp_path, fds=(writer,), log=log)
    os.close(writer)
    assert os.read(reader, 100) == b"passed"
    os.close(reader)
    assert process.wait(10)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == f"{tmp_path} True"
    descriptors = set(ast.literal_eval(second))
    assert {"0", "1", "2", str(writer)} <= descriptors
    assert len(descriptors) == 5  # and the one by which they were listed


def test_finding_a_machine_by_its_folder(sleeper, tmp_path):
    """A QEMU is found by the folder that it works in; other programs there, and QEMUs elsewhere, are not."""
    program = tmp_path / "qemu-system-test"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"], cwd=tmp_path) as machine:
        try:
            found = wait_for(lambda: running_in(tmp_path), Deadline(10), what="the process to be found")
            assert [process.pid for process in found] == [machine.pid]
            assert running_in(tmp_path / "elsewhere") == []
        finally:
            machine.kill()
    assert sleeper.alive
