"""Functional tests boot real machines, on the user's own image store, as users' tests do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scan

from pytest_vmfest import Server, instance_fixture

HERE = Path(__file__).parent

box = instance_fixture(scope="module", image="tiny")


def pytest_collection_modifyitems(items):
    """Mark everything in this folder, so that `-m "not functional"` leaves real machines out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.functional)


@pytest.fixture(autouse=True)
def _on_its_driver(request, vm_server):
    """Tests of what only one driver has are left out elsewhere."""
    here = vm_server.driver.name
    for driver in {"qemu", "virtualbox"} - {here}:
        if request.node.get_closest_marker(driver):
            pytest.skip(f"not of {here}")


@pytest.fixture
def own_home(vm_server, tmp_path_factory, monkeypatch):
    """A store of the test's own that has `tiny`, taken from the user's; VMFEST_HOME points to it."""
    vm_server.images.resolve("tiny")
    home = tmp_path_factory.mktemp("home")
    for part in ("images/tiny", "keys"):
        shutil.copytree(vm_server.home / part, home / part, copy_function=_link_or_copy)
    monkeypatch.setenv("VMFEST_HOME", str(home))
    yield home
    with Server(vm_server.driver.name, home=home) as server:
        for machine in server.machines():  # a test that failed may have left some
            machine.destroy()


@pytest.fixture
def scanned(own_home):
    """A look at the test's own store."""
    return scan.Scan(own_home)


@pytest.fixture
def begin():
    """Starts pytest with the given arguments; what a failing test leaves running is ended."""
    runs = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", *arguments]
        run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be killed as a group
        )
        runs.append(run)
        return run

    yield start
    for run in runs:
        if run.poll() is None:
            run.terminate()
        run.communicate(timeout=180)


def _link_or_copy(source: str, target: str) -> None:
    """A hard link, or a copy where the temporary folder is on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
