"""Processes known by pid and start time."""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from pytest_vmfest.drivers.qemu.process import Process, running_in, spawn
from pytest_vmfest.errors import DriverError
from pytest_vmfest.waiting import Deadline, wait_for


@pytest.fixture
def sleeper(tmp_path):
    """A process started by us; gone after the test."""
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["sleep", "60"], tmp_path, fds=(), log=log)
    yield process
    process.kill(10)


def test_a_process_lives_until_it_is_killed(sleeper):
    """Alive, not ended after a while, killed, ended, and no zombie."""
    assert sleeper.alive
    assert not sleeper.wait(0.01)
    assert sleeper.kill(10)
    assert not sleeper.alive
    assert sleeper.wait(0)
    assert not psutil.pid_exists(sleeper.pid)
    assert sleeper.kill(0)


def test_a_child_that_ended_by_itself_is_no_zombie(tmp_path):
    """Waiting for a child takes its zombie away."""
    with (tmp_path / "log").open("wb") as log:
        process = spawn(["true"], tmp_path, fds=(), log=log)
    assert process.wait(10)
    assert not psutil.pid_exists(process.pid)


def test_a_recycled_pid_is_somebody_else(sleeper):
    """With another start time or of another boot it is another process: dead, and never signalled."""
    for other in (replace(sleeper, start_ticks=sleeper.start_ticks - 1), replace(sleeper, boot="another")):
        assert not other.alive
        assert other.wait(0)
        assert other.kill(0)
    assert sleeper.alive


def test_a_process_of_another_parent():
    """One that is not our child can be awaited and killed as well."""
    starter = subprocess.run(
        ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True, text=True
    )
    process = Process.of(int(starter.stdout))
    assert process.alive
    assert not process.wait(0.01)
    assert process.kill(10)
    assert not process.alive


def test_somebody_elses_zombie_is_dead():
    """A process that has ended, but whose parent has not noticed, is not alive."""
    code = "import subprocess, time; p = subprocess.Popen(['true']); print(p.pid, flush=True); time.sleep(60)"
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        zombie = Process.of(int(parent.stdout.readline()))
        assert zombie.wait(10)
        assert psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE
        assert not zombie.alive
        parent.kill()


def test_no_such_process():
    """A pid that nobody has raises the usual error."""
    with pytest.raises(ProcessLookupError):
        Process.of(2**22 + 1)


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
