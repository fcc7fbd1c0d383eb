"""Whatever way a run ends in order, nothing of its machines is left."""

import os
import signal
import subprocess
import sys

import pytest
import scan

from pytest_vmfest.waiting import Deadline, wait_for

ENDLESS = """
    import pytest, pathlib

    def test_long(vm_instance):
        pathlib.Path("started").touch()
        vm_instance.run("sleep 1000")
"""


@pytest.fixture
def clean_scan(own_home):
    """Compare the host before and after: processes, files and listening ports."""
    before = scan.listening()

    def check() -> None:
        assert scan.processes(own_home) == []
        assert scan.leftovers(own_home) == []
        assert scan.listening() <= before

    return check


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_run_ended_in_the_middle_of_a_test(pytester, clean_scan, number):
    """Ctrl-C and SIGTERM destroy the machine that a test is using, and pytest tells of the interrupt."""
    pytester.makepyfile(ENDLESS)
    run = subprocess.Popen([sys.executable, "-m", "pytest"], stdout=subprocess.PIPE, text=True)
    wait_for((pytester.path / "started").exists, Deadline(300), what="the test to begin", watch=_alive(run))
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == (2 if number == signal.SIGINT else 128 + signal.SIGTERM), output
    clean_scan()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_run_ended_while_a_group_boots(pytester, own_home, clean_scan, number):
    """The same while machines are still booting."""
    pytester.makepyfile("import pytest\n@pytest.mark.vm(nodes=2)\ndef test_it(vm_group): pass")
    run = subprocess.Popen([sys.executable, "-m", "pytest"], stdout=subprocess.PIPE, text=True)
    wait_for(
        lambda: len(scan.leftovers(own_home)) == 3 and scan.processes(own_home),
        Deadline(60),
        what="two machines and a network",
        watch=_alive(run),
    )
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode != 0, output
    clean_scan()


def test_failures_errors_and_exitfirst(pytester, clean_scan):
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
    clean_scan()


@pytest.mark.slow
def test_twenty_fresh_machines_one_after_the_other(pytester, clean_scan):
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
    clean_scan()


def _alive(run: subprocess.Popen[str]):
    def check() -> None:
        if run.poll() is not None:
            pytest.fail(f"pytest ended with {run.returncode}:\n{run.communicate()[0]}")

    return check
