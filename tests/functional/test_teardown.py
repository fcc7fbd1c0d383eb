"""Whatever way a run ends in order, nothing of its machines is left."""

import os
import re
import signal
import subprocess

import psutil
import pytest
import scan
from runs import until

from pytest_vmfest.waiting import Deadline, wait_for

ENDLESS = """
    import pytest, pathlib

    def test_long(vm_instance):
        pathlib.Path("started").touch()
        vm_instance.run("sleep 1000")
"""
TWO_ENDLESS = """
    import pathlib, pytest

    @pytest.mark.parametrize("turn", range(2))
    def test_long(vm_instance, turn):
        pathlib.Path(f"started-{turn}").touch()
        vm_instance.run("sleep 1000")
"""
# Usually it takes less than five seconds; a machine that emulates VirtualBox's is slow.
GONE_S = 60
BOTH_SIGNALS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.any_driver),
    ],
)


@pytest.mark.parametrize("victim", ["pytest", pytest.param("group", marks=pytest.mark.any_driver)])
def test_a_killed_run(pytester, scanned, begin, victim):
    """After kill -9 of pytest, or of its process group, its machine is gone; the next run works."""
    pytester.makepyfile(ENDLESS)
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")
    scanned.see(machines=1)
    os.kill(run.pid, signal.SIGKILL) if victim == "pytest" else os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=180)
    scanned.nothing_is_left(within_s=GONE_S)
    pytester.makepyfile("def test_next(vm_instance): vm_instance.check_output('true')")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    scanned.nothing_is_left()


@pytest.mark.any_driver
@pytest.mark.parametrize("victim", ["controller", "group"])
def test_a_killed_run_with_workers(pytester, scanned, begin, victim):
    """After kill -9 of xdist's controller, its workers' machines are gone, and so are the workers."""
    pytester.makepyfile(TWO_ENDLESS)
    run = begin("-n", "2")
    both_begin(pytester, run)
    scanned.see(machines=2)
    workers = psutil.Process(run.pid).children()
    os.kill(run.pid, signal.SIGKILL) if victim == "controller" else os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=180)
    scanned.nothing_is_left(within_s=GONE_S)
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.any_driver
def test_a_killed_worker(pytester, scanned, begin):
    """After kill -9 of a worker, its machine is gone; the other's goes on."""
    pytester.makepyfile(TWO_ENDLESS)
    run = begin("-n", "2", "--max-worker-restart=0")
    both_begin(pytester, run)
    scanned.see(machines=2)
    psutil.Process(run.pid).children()[0].kill()
    wait_for(
        lambda: len(scan.hypervisors(scanned.home)) == 1, Deadline(GONE_S), what="one machine to be left"
    )
    os.kill(run.pid, signal.SIGTERM)
    run.communicate(timeout=180)
    scanned.nothing_is_left(within_s=GONE_S)


@BOTH_SIGNALS
def test_a_run_ended_in_the_middle_of_a_test(pytester, scanned, begin, number):
    """Ctrl-C and SIGTERM destroy the machine that a test is using, and pytest tells of the interrupt."""
    pytester.makepyfile(ENDLESS)
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")
    scanned.see(machines=1)
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=180)
    assert run.returncode == (2 if number == signal.SIGINT else 128 + signal.SIGTERM), output
    scanned.nothing_is_left()


@BOTH_SIGNALS
def test_a_run_ended_while_a_group_boots(pytester, own_home, scanned, begin, number):
    """The same while machines are still booting."""
    pytester.makepyfile("import pytest\n@pytest.mark.vm(nodes=2)\ndef test_it(vm_group): pass")
    run = begin()
    until(  # with one CPU, the second is made when the first has booted
        lambda: len(list(own_home.glob("**/machines/*"))) == 2 and scan.hypervisors(own_home),
        run,
        "two machines, one of which runs",
    )
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=180)
    assert run.returncode != 0, output
    scanned.nothing_is_left()


@BOTH_SIGNALS
def test_workers_ended_in_the_middle_of_their_tests(pytester, scanned, begin, number):
    """The same with xdist, whose workers hear of it from their controller."""
    pytester.makepyfile(TWO_ENDLESS)
    run = begin("-n", "2")
    both_begin(pytester, run)
    scanned.see(machines=2)
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=180)
    assert run.returncode != 0, output
    # xdist kills workers that have not ended after ten seconds; then it is for their guardians to clean up.
    scanned.nothing_is_left(within_s=GONE_S)


def test_the_hypervisor_is_killed(pytester, scanned, begin):
    """A command that runs at that moment ends at once: an error that says that the machine was aborted."""
    pytester.makepyfile(ENDLESS)
    run = begin("--junitxml", "junit.xml")
    until((pytester.path / "started").exists, run, "the test to begin")
    scanned.see(machines=1)
    (hypervisor,) = scan.hypervisors(scanned.home)
    hypervisor.kill()
    output, _ = run.communicate(timeout=180)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, output
    assert "MachineGoneError: machine 'vm-" in output
    assert "is aborted" in output
    assert "ERROR at call of test_long" in output
    assert re.search(r"^=+ 1 error in ", output, re.MULTILINE), output
    assert ' errors="1" failures="0" ' in (pytester.path / "junit.xml").read_text()
    scanned.nothing_is_left()


@pytest.mark.parametrize("moment", ["destroy", "launched"])
def test_an_interrupt_at_the_worst_moment(pytester, vm_server, scanned, moment):
    """Ctrl-C while a machine is being destroyed, or just after its start: it is gone all the same."""
    pytester.makeconftest(
        f"""
        import os, signal
        from pytest_vmfest import launcher
        from pytest_vmfest.drivers import driver_class

        def interrupting(function, before):
            def replaced(*arguments, **named):
                if before:
                    os.kill(os.getpid(), signal.SIGINT)
                result = function(*arguments, **named)
                if not before:
                    os.kill(os.getpid(), signal.SIGINT)
                return result
            return replaced

        if {moment!r} == "destroy":
            kind = driver_class({vm_server.driver.name!r})
            kind.destroy = interrupting(kind.destroy, before=True)
        else:
            launcher.Launcher.launch = interrupting(launcher.Launcher.launch, before=False)
        """
    )
    pytester.makepyfile("def test_it(vm_instance): pass")
    assert pytester.runpytest_subprocess().ret == pytest.ExitCode.INTERRUPTED
    scanned.nothing_is_left()


def test_failures_errors_and_exitfirst(pytester, scanned):
    """A failing test, an error in another fixture, and -x leave nothing."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def broken(vm_instance):
            raise ValueError("not our fault")

        def test_error(broken): pass

        def test_fails(vm_instance):
            assert vm_instance.check_output("echo 1") == "2"

        def test_never_reached(vm_instance): pass
        """
    )
    pytester.runpytest_subprocess("--maxfail=2").assert_outcomes(failed=1, errors=1)
    pytester.runpytest_subprocess("-x", "--lf").assert_outcomes(errors=1)
    scanned.nothing_is_left()


@pytest.mark.slow
def test_twenty_fresh_machines_one_after_the_other(pytester, scanned):
    """Twenty tests get a machine each that nobody used; then a scan finds nothing."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("turn", range(20))
        def test_fresh(vm_instance, turn):
            assert not vm_instance.run("test -e /root/used").ok
            vm_instance.write_text("/root/used", "")
        """
    )
    pytester.runpytest_subprocess("-n", "2").assert_outcomes(passed=20)
    scanned.nothing_is_left()


def both_begin(pytester, run: subprocess.Popen[str]) -> None:
    """Wait until both tests of `TWO_ENDLESS` have their machines."""
    until(lambda: len(list(pytester.path.glob("started-*"))) == 2, run, "both tests to begin")
