"""Faults done for real: whatever breaks, what happened is told, nothing is left, and the next run works."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import scan
from runs import BEGUN_S, fill, until

from pytest_vmfest import MachineState, Server, VmfestError, WaitTimeoutError
from pytest_vmfest.errors import ConnectionLostError
from pytest_vmfest.waiting import Deadline, wait_for

pytestmark = pytest.mark.any_driver  # all of it on QEMU

GONE_S = 60
# A run that nothing is wrong with any more, on a machine that has more to do.
ENDED_S = 300
# What has to happen "at once" does so within this, with one boot's worth of other work on the host.
AT_ONCE_S = 30
NEXT = "def test_next(vm_instance): vm_instance.check_output('true')"
ENDLESS = """
    import pathlib

    def test_long(vm_instance):
        pathlib.Path("started").touch()
        vm_instance.run("sleep 1000")
"""


@pytest.fixture
def next_run(pytester, scanned):
    """Runs a test on a machine, which has to pass and to leave nothing; what it printed."""

    def run() -> str:
        for path in pytester.path.glob("*.py"):
            path.unlink()
        pytester.makepyfile(NEXT)
        result = pytester.runpytest_subprocess()
        result.assert_outcomes(passed=1)
        scanned.nothing_is_left()
        return result.stdout.str()

    return run


@pytest.fixture
def node(own_home, scanned):
    """A node of this very process; after the test nothing of it may be left."""
    with Server("qemu", home=own_home) as server:
        server.own({"test": "faults"})
        with server.launch(image="tiny") as node:
            yield node
    scanned.nothing_is_left()


# --- signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["test", "teardown"])
def test_two_interrupts_in_a_row(pytester, scanned, begin, next_run, first):
    """The second Ctrl-C comes while the machine is being destroyed: that is brought to its end."""
    pytester.makeconftest(
        """
        import pathlib, time
        from pytest_vmfest.drivers import driver_class

        kind = driver_class("qemu")
        destroy = kind._destroy

        def destroy_slowly(self, name):
            pathlib.Path("destroying").touch()
            while not pathlib.Path("go-on").exists():
                time.sleep(0.01)
            destroy(self, name)

        kind._destroy = destroy_slowly
        """
    )
    pytester.makepyfile(ENDLESS if first == "test" else NEXT)
    run = begin()
    if first == "test":
        until((pytester.path / "started").exists, run, "the test to begin")
        os.kill(run.pid, signal.SIGINT)
    until((pytester.path / "destroying").exists, run, "the machine to be destroyed")
    scanned.see(machines=1)
    os.kill(run.pid, signal.SIGINT)
    if first == "teardown":
        wait_for(lambda: not _pending(run.pid), Deadline(AT_ONCE_S), what="the first signal to be taken")
        os.kill(run.pid, signal.SIGINT)
    (pytester.path / "go-on").touch()
    output, _ = run.communicate(timeout=ENDED_S)
    # One that comes when the session is being finished is too much for pytest, which Python tells then.
    assert run.returncode in (pytest.ExitCode.INTERRUPTED, -signal.SIGINT), output
    assert "KeyboardInterrupt" in output
    scanned.nothing_is_left()
    next_run()


def _pending(pid: int) -> bool:
    """Whether a process has signals that it has not taken yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def test_interrupts_without_end(pytester, scanned, begin, next_run):
    """Somebody who leans on Ctrl-C until pytest has ended leaves nothing either."""
    pytester.makepyfile(ENDLESS)
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")

    def ended() -> bool:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGINT)
        return run.poll() is not None

    wait_for(ended, Deadline(ENDED_S), what="pytest to end", interval_s=0.2)
    assert run.returncode != 0
    scanned.nothing_is_left(within_s=GONE_S)
    next_run()


# --- the store's file system ---------------------------------------------------------------------------


def test_a_full_disk_before_the_run(pytester, small_disk, scanned, next_run):
    """No machine is made; the error says what is full and what to do."""
    fill(small_disk)
    pytester.makepyfile(NEXT)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines(
        [
            rf".*cannot write to {small_disk}.*: No space left on device",
            ".*free some space, or set VMFEST_HOME",
        ]
    )
    scanned.nothing_is_left()
    (small_disk / "filler").unlink()
    next_run()


@pytest.mark.parametrize("end", ["order", "kill"])
def test_a_disk_that_fills_up_under_a_machine(pytester, small_disk, scanned, begin, next_run, end):
    """The machine stands still, which is told at once; it is removed although nothing can be written."""
    pytester.makepyfile(
        f"""
        import os, pathlib, signal, time

        def test_it(vm_instance):
            pathlib.Path("started").touch()
            while not pathlib.Path("full").exists():
                time.sleep(0.1)
            if {end!r} == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            vm_instance.run("dd if=/dev/urandom of=/root/big bs=1M count=100; sync")
        """
    )
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")
    scanned.see(machines=1)
    fill(small_disk)
    (pytester.path / "full").touch()
    output, _ = run.communicate(timeout=ENDED_S)
    if end == "order":
        assert run.returncode == pytest.ExitCode.TESTS_FAILED, output
        assert f"stands still: there is no space left for its disk in {small_disk}" in output
        assert "free some space" in output
        assert "ERROR at call of test_it" in output
    scanned.nothing_is_left(within_s=0 if end == "order" else GONE_S)
    (small_disk / "filler").unlink()
    next_run()


def test_a_store_that_cannot_be_written_to(pytester, own_home, mounted, scanned):
    """The error says what, where and what to do; no machine is made."""
    mounted("--bind", str(own_home), at=own_home)
    mounted("-o", "remount,bind,ro", at=own_home)
    pytester.makepyfile(NEXT)
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1)
    result.stdout.re_match_lines(
        [
            rf".*cannot write to {own_home}.*: Read-only file system",
            ".*set VMFEST_HOME to a folder that can be written to",
        ]
    )
    scanned.nothing_is_left()


# --- the guardian --------------------------------------------------------------------------------------

TWO_TESTS = """
    import pathlib, time

    def wait(name):
        while not pathlib.Path(name).exists():
            time.sleep(0.1)

    def test_a(vm_instance):
        pathlib.Path("started").touch()
        wait("go-on")
        vm_instance.check_output("true")

    def test_b(vm_instance):
        vm_instance.check_output("true")
        pathlib.Path("started-again").touch()
        wait("never")
"""


def guardians(home: Path) -> list[psutil.Process]:
    """The processes that watch over a store's machines."""
    found = []
    for process in scan.processes(home):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "vmfest-guardian" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_guardian(home: Path) -> None:
    """Kill it, and wait until it is gone."""
    (guardian,) = guardians(home)
    guardian.kill()
    wait_for(lambda: not guardians(home), Deadline(GONE_S), what="the guardian to be gone")


def test_killed_guardians(pytester, scanned, begin, next_run):
    """One is replaced when a machine is to be made; if the run is killed as well, the next run clears up."""
    pytester.makepyfile(TWO_TESTS)
    run = begin("-s")
    until((pytester.path / "started").exists, run, "the first test to begin")
    kill_guardian(scanned.home)
    (pytester.path / "go-on").touch()
    until((pytester.path / "started-again").exists, run, "the second test to begin")
    scanned.see(machines=1)
    kill_guardian(scanned.home)
    run.kill()
    output, _ = run.communicate(timeout=ENDED_S)
    assert "it was killed; another one watches now" in output
    scanned.see(machines=1)  # nobody was there to remove it
    assert "had been left by another run: removed" in next_run()


def test_a_guardian_killed_at_the_end(pytester, scanned, begin):
    """The run removes its machines by itself."""
    pytester.makepyfile(TWO_TESTS.replace('wait("never")', ""))
    run = begin("-k", "test_a")
    until((pytester.path / "started").exists, run, "the test to begin")
    kill_guardian(scanned.home)
    (pytester.path / "go-on").touch()
    output, _ = run.communicate(timeout=ENDED_S)
    assert run.returncode == 0, output
    scanned.nothing_is_left()


# --- the guest -----------------------------------------------------------------------------------------


def test_a_guest_that_hangs_in_shutdown(node):
    """The deadline of stop holds; the machine can be destroyed all the same."""
    node.check_output("echo ::shutdown:/bin/sleep 1000 >> /etc/inittab; kill -HUP 1")
    deadline = Deadline(AT_ONCE_S)
    with pytest.raises(WaitTimeoutError, match="did not shut down within 6 s"):
        node.instance.stop(timeout_s=6)
    assert not deadline.expired
    assert node.instance.state is MachineState.RUNNING


def test_a_guest_that_eats_all_its_memory(node):
    """The kernel's OOM killer ends somebody; whoever it is, the test gets an answer or an error, in time."""
    deadline = Deadline(ENDED_S)
    with suppress(VmfestError):
        assert node.run("tail /dev/zero", timeout_s=120).exit_status != 0
    with suppress(VmfestError):
        node.run("true", timeout_s=60)
    assert not deadline.expired
    wait_for(lambda: "Out of memory" in node.console(), Deadline(AT_ONCE_S), what="the kernel to tell of it")


def test_a_guest_that_closes_ssh_under_a_command(node):
    """That command fails; the next one works, on a connection of its own."""
    with pytest.raises(ConnectionLostError):
        node.run("kill -9 $PPID; sleep 1000")
    assert node.check_output("hostname") == node.name


@pytest.mark.parametrize("how", ["reboot", "reboot -f"])
def test_a_guest_that_reboots_by_itself(node, how):
    """A command that runs meanwhile fails, also if the guest says no goodbye; then it is there again."""
    before = node.check_output("cat /proc/sys/kernel/random/boot_id")
    with pytest.raises(ConnectionLostError):
        node.run(f"(sleep 1; {how}) >/dev/null 2>&1 & sleep 1000", timeout_s=ENDED_S)
    node.wait_until("true", timeout_s=BEGUN_S)
    assert node.check_output("cat /proc/sys/kernel/random/boot_id") != before


# --- the host ------------------------------------------------------------------------------------------


def test_four_runs_at_once_one_of_them_killed(pytester, scanned, begin, next_run):
    """The three others pass; nothing is left of any."""
    runs = []
    for number in range(4):
        pytester.makepyfile(
            **{
                f"test_{number}": f"""
                import pathlib, time

                def test_it(vm_instance):
                    pathlib.Path("started-{number}").touch()
                    while not pathlib.Path("go-on").exists():
                        time.sleep(0.1)
                    vm_instance.check_output("true")
                """
            }
        )
        runs.append(begin(f"test_{number}.py", "-p", "no:cacheprovider"))
    for number, run in enumerate(runs):
        until((pytester.path / f"started-{number}").exists, run, f"run {number} to begin")
    scanned.see(machines=4)
    runs[0].kill()
    (pytester.path / "go-on").touch()
    outputs = [run.communicate(timeout=ENDED_S)[0] for run in runs]
    assert [run.returncode for run in runs] == [-signal.SIGKILL, 0, 0, 0], outputs
    scanned.nothing_is_left(within_s=GONE_S)
    next_run()


@pytest.mark.parametrize(
    ("test", "status"), [(NEXT, 0), (NEXT.replace("true", "false"), 1)], ids=["passing", "failing"]
)
def test_a_run_without_standard_descriptors(pytester, scanned, test, status):
    """As from a service that closes them: it ends, its exit status is right, and nothing is left.

    Without pytest's own parts that insist on writing there.
    """
    pytester.makepyfile(test)
    arguments = ["-s", "-p", "no:terminal", "-p", "no:faulthandler", "--junit-xml", "report.xml"]
    program = f"import pytest, sys; sys.exit(pytest.main({arguments}))"
    command = f'exec {sys.executable} -c "$0" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, program], timeout=ENDED_S, check=False)
    report = (pytester.path / "report.xml").read_text()
    assert done.returncode == status, report
    assert f'errors="0" failures="{status}"' in report
    scanned.nothing_is_left()
