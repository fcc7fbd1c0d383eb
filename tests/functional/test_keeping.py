"""Machines that outlive their run on purpose, and for how long."""

import os
import signal
import subprocess
import sys

import pytest
import scan
from click.testing import CliRunner

from pytest_vmfest import MachineState, Server
from pytest_vmfest.cli import main
from pytest_vmfest.waiting import Deadline, wait_for

FAILING = "def test_it(vm_instance): assert vm_instance.check_output('echo 1') == '2'"


@pytest.fixture
def server(vm_server, own_home):
    """The test's own store, as another terminal sees it."""
    with Server(vm_server.driver.name, home=own_home) as server:
        yield server
        for machine in server.machines():
            machine.destroy()


@pytest.mark.any_driver
def test_a_kept_machine_lives_and_can_be_entered(pytester, server, scanned):
    """It runs on when its run has ended; how to get in and how long is told; destroyed, nothing is left."""
    pytester.makepyfile(FAILING)
    result = pytester.runpytest_subprocess("--vm-keep", "failed")
    result.assert_outcomes(failed=1)
    (machine,) = server.machines()
    assert machine.state is MachineState.RUNNING
    result.stdout.re_match_lines([rf"{machine.name}  \(of .*test_it, until \d\d:\d\d\)", r"    ssh .*"])
    (command,) = (line.strip() for line in result.outlines if line.startswith("    ssh "))
    done = subprocess.run(f"{command} uname -s", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "Linux\n"
    assert CliRunner().invoke(main, ["gc"]).stdout.startswith(f"{machine.name}: kept until ")
    assert machine.state is MachineState.RUNNING
    machine.destroy()
    CliRunner().invoke(main, ["gc"])
    scanned.nothing_is_left()


@pytest.mark.any_driver
def test_its_time_comes(pytester, server, scanned):
    """When its time is over, the next one to look removes it."""
    pytester.makepyfile(FAILING)
    pytester.runpytest_subprocess("--vm-keep", "failed", "--vm-keep-timeout", "0.1").assert_outcomes(failed=1)
    (machine,) = server.machines()
    wait_for(
        lambda: CliRunner().invoke(main, ["gc"]).stdout == f"{machine.name}: removed\n",
        Deadline(10),
        what="its time to come",
    )
    scanned.nothing_is_left()


def test_what_was_kept_before_a_kill_stays(pytester, server, scanned):
    """The guardian of a killed run removes what was in use, and spares what the run had kept already."""
    pytester.makepyfile(
        f"""
        import pathlib

        {FAILING.replace("test_it", "test_a")}

        def test_b(vm_instance):
            pathlib.Path("started").write_text(vm_instance.instance.name)
            vm_instance.run("sleep 1000")
        """
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--vm-keep", "failed"], stdout=subprocess.PIPE, text=True
    )
    try:
        wait_for((pytester.path / "started").exists, Deadline(300), what="the second test")
        assert len(server.machines()) == 2
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
    wait_for(lambda: len(server.machines()) == 1, Deadline(60), what="one machine to go")
    (machine,) = server.machines()
    assert machine.name != (pytester.path / "started").read_text()
    assert machine.state is MachineState.RUNNING
    machine.destroy()
    wait_for(
        lambda: CliRunner().invoke(main, ["gc"]).exit_code == 0 and not scan.leftovers(scanned.home),
        Deadline(60),
        what="the ledger to go",
    )
    scanned.nothing_is_left(within_s=60)
