"""Processes known by pid and start time, and helpers that outlive who starts them."""

import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from pytest_vmfest.processes import Process, start_helper
from pytest_vmfest.waiting import Deadline, wait_for

READY = b"ready"


def helper(tmp_path, program, timeout_s=10.0):
    """Start Python with a program that says that it is ready, and then goes on."""
    return start_helper(
        [sys.executable, "-I", "-S", "-"],
        ready=READY,
        log=str(tmp_path / "log"),
        timeout_s=timeout_s,
        program=f"import os; os.write(1, {READY!r})\n{program}",
    )


@pytest.fixture
def sleeper(tmp_path):
    """A process started by us; gone after the test."""
    process = helper(tmp_path, "import time; time.sleep(60)")
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
    process = helper(tmp_path, "")
    assert process.wait(10)
    assert not psutil.pid_exists(process.pid)


def test_a_process_is_asked_to_end(tmp_path):
    """SIGTERM lets it put its things in order; one that is gone is not asked."""
    process = helper(
        tmp_path,
        "import pathlib, signal, sys\n"
        f"signal.signal(15, lambda *a: (pathlib.Path({str(tmp_path / 'asked')!r}).touch(), sys.exit()))\n"
        "os.write(2, b'x'); signal.pause()",
    )
    wait_for((tmp_path / "log").read_bytes, Deadline(10), what="the handler")
    process.terminate()
    assert process.wait(10)
    assert (tmp_path / "asked").exists()
    process.terminate()


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


def test_a_helper_is_apart_from_us(tmp_path):
    """It has a session of its own, prints to its log, and is not told of a Ctrl-C in our terminal."""
    process = helper(tmp_path, "print(os.getsid(0) == os.getpid(), file=__import__('sys').stderr)")
    assert process.wait(10)
    assert (tmp_path / "log").read_text() == "True\n"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit(1)", "ended at once"),
        ("raise SystemExit('Bad: thing')", "Bad: thing"),
        ("import time; time.sleep(60)", "not ready in 0.2 s"),
    ],
    ids=["ends", "complains", "hangs"],
)
def test_a_helper_that_does_not_start(tmp_path, program, reason):
    """The error says why, and no process is left."""
    before = psutil.Process().children()
    with pytest.raises(OSError, match=reason):
        start_helper(
            [sys.executable, "-I", "-S", "-c", program],
            ready=READY,
            log=str(tmp_path / "log"),
            timeout_s=0.2 if "sleep" in program else 10,
        )
    assert psutil.Process().children() == before


def test_a_helper_of_a_process_without_standard_files(tmp_path):
    """Where 0, 1 and 2 are closed, the helper's pipes must not be taken for them."""
    code = (
        "import os, sys; os.closerange(0, 3); from pytest_vmfest.processes import start_helper;"
        f"p = start_helper([sys.executable, '-I', '-S', '-'], ready=b'x', log={str(tmp_path / 'log')!r},"
        ' timeout_s=10, program=\'import os; os.write(1, b"x"); os.write(2, b"done")\'); p.wait(10)'
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (tmp_path / "log").read_text() == "done"


def test_a_connection_to_inherit_is_beyond_the_standard_files():
    """Where 0 is closed, a socket gets that number; it is moved, and the number is free again."""
    code = (
        "import os, socket; os.close(0); from pytest_vmfest.processes import beyond_standard;"
        "ours, theirs = socket.socketpair(); moved = beyond_standard(ours);"
        "assert ours.fileno() == -1 and moved.fileno() > 2 and not moved.get_inheritable();"
        "assert beyond_standard(moved) is moved;"
        "theirs.send(b'x'); assert moved.recv(1) == b'x'; assert os.dup(2) == 0"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
