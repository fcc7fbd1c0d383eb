"""Functional tests boot real machines, on the user's own image store, as users' tests do."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
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
def mounted(tmp_path_factory):
    """Mounts something for the test's time; skips the test where that is not allowed."""
    places = []

    def mount(*arguments: str, at: Path) -> None:
        done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        if at not in places:
            places.append(at)

    yield mount
    for place in places:
        # What still works there, as a test has failed, is to go first.
        for process in scan.processes(place):
            with suppress(psutil.Error):
                process.kill()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(request, own_home, mounted):
    """Puts the store on a file system with little room beside the image; the parameter says how many MiB."""
    room_mib = getattr(request, "param", 30)
    kept = own_home.with_name(f"{own_home.name}-kept")
    own_home.rename(kept)
    own_home.mkdir()
    used_mib = sum(path.stat().st_blocks for path in kept.rglob("*")) * 512 >> 20
    try:
        mounted("-t", "tmpfs", "-o", f"size={used_mib + room_mib}m,mode=0700", "none", at=own_home)
        subprocess.run(["cp", "-a", "--sparse=always", f"{kept}/.", str(own_home)], check=True)
        yield own_home
    finally:
        for path in own_home.glob("filler"):
            path.unlink()


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
