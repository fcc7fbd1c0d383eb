"""Faults that VirtualBox has in its own way: what happened is told, nothing is left, the next run works."""

import os
import re
import signal
import subprocess

import psutil
import pytest
from runs import fill, until

from pytest_vmfest.drivers.virtualbox.connection import find_installation
from pytest_vmfest.waiting import Deadline, wait_for

pytestmark = pytest.mark.virtualbox

ENDED_S = 300
GONE_S = 60
SUITE = """
    import pathlib
    import pytest

    @pytest.mark.vm(network="nat")
    def test_long(vm_instance):
        pathlib.Path("started").touch()
        vm_instance.run("sleep 1000")
"""
NEXT = """
    import pytest

    @pytest.mark.vm(network="nat")
    def test_next(vm_instance):
        vm_instance.check_output("true")
"""


@pytest.fixture
def own_service(tmp_path, monkeypatch):
    """Lets runs have a service and a registry of their own: this process could not reach a second one."""
    home = tmp_path / "registry"
    home.mkdir()
    settings = manage("getextradata", "global", "enumerate")
    monkeypatch.setenv("VBOX_USER_HOME", str(home))
    monkeypatch.setenv("VBOX_IPC_SOCKETID", tmp_path.name)
    # Without the user's own, machines in an emulated machine would hardly boot.
    for key, value in re.findall(r"^Key: (\S+), Value: (.*)$", settings, re.MULTILINE):
        manage("setextradata", "global", key, value)
    yield
    for process in processes(home):
        process.kill()


def manage(*arguments):
    """What VirtualBox's own command line prints."""
    program = find_installation().folder / "VBoxManage"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def processes(home):
    """VirtualBox's processes that use the registry in ``home``."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            is_ours = process.info["name"].startswith("VBox")
            if is_ours and process.environ().get("VBOX_USER_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.usefixtures("own_service")
def test_the_service_is_killed(begin, pytester, own_home):
    """What uses it fails at once with the reason; the guardian, by a new service, removes the machine."""
    registry = os.environ["VBOX_USER_HOME"]
    pytester.makepyfile(SUITE)
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")
    [service] = [one for one in processes(registry) if one.name() == "VBoxSVC"]
    service.send_signal(signal.SIGKILL)
    told, _ = run.communicate(timeout=ENDED_S)
    assert run.returncode != 0
    assert "VBoxSVC" in told

    def left():
        headless = [one for one in processes(registry) if one.name().startswith("VBoxHeadless")]
        return [*headless, *(own_home / "runs").glob("*.ledger"), *(own_home / "machines").glob("*")]

    wait_for(lambda: not left(), Deadline(GONE_S), what="nothing to be left")
    (pytester.path / "test_the_service_is_killed.py").unlink()
    pytester.makepyfile(test_next=NEXT)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize("small_disk", [400], indirect=True)
def test_a_disk_that_fills_up_under_a_machine(pytester, small_disk, scanned, begin):
    """VirtualBox halts the machine, which is told at once; it is removed although nothing can be written."""
    pytester.makepyfile(
        """
        import pathlib, time

        def test_it(vm_instance):
            pathlib.Path("started").touch()
            while not pathlib.Path("full").exists():
                time.sleep(0.1)
            vm_instance.run("dd if=/dev/urandom of=/root/big bs=1M count=100; sync")
        """
    )
    run = begin()
    until((pytester.path / "started").exists, run, "the test to begin")
    fill(small_disk)
    (pytester.path / "full").touch()
    told, _ = run.communicate(timeout=ENDED_S)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, told
    assert f"stands still: there is no space left for its disk in {small_disk}" in told
    scanned.nothing_is_left()
