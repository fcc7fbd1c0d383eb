"""A real VirtualBox: its service is enough for most tests, those that start machines want all of it."""

import shutil
from pathlib import Path

import pytest
from registry import registered

from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import VirtualBoxDriver, hostonly
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.drivers.virtualbox.diagnosis import why_not
from pytest_vmfest.errors import DriverUnavailableError
from pytest_vmfest.specs import ImageModel

WHY_NOT = why_not(DriverSettings(Path()))


def pytest_itemcollected(item):
    """Mark what starts machines, so that the rest can run where VirtualBox has no kernel modules."""
    if "running" in item.fixturenames:
        item.add_marker("starts_machines")


@pytest.fixture(scope="session")
def connection(tmp_path_factory):
    """A line to VirtualBox's service: the user's where machines can run, else one with its own registry."""
    home = tmp_path_factory.mktemp("virtualbox")
    with pytest.MonkeyPatch.context() as patched:
        if WHY_NOT:
            # By the second, processes find the service that belongs to the first.
            patched.setenv("VBOX_USER_HOME", str(home))
            patched.setenv("VBOX_IPC_SOCKETID", home.parent.name)
        try:
            yield connect(DriverSettings(home))
        except DriverUnavailableError as error:
            pytest.skip(error.message)


@pytest.fixture(scope="session")
def running(connection):
    """For tests that start machines; the host-only interface, which stays once it is made, is there."""
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    hostonly.ensure_local(connection, "vboxnet0")


@pytest.fixture
def sector(tmp_path):
    """A disk without any system, as a model."""
    disk = tmp_path / "sector.img"
    disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
    return ImageModel("sector", disk, "raw")


@pytest.fixture
def driver(connection, tmp_path):
    """A driver with a store of the test's own; afterwards VirtualBox's lists are as they were."""
    before = registered(connection)
    driver = VirtualBoxDriver(DriverSettings(tmp_path / "home"))
    yield driver
    for info in driver.machines():
        driver.destroy(info.name)
    driver.close()
    assert registered(connection) == before


@pytest.fixture(scope="session")
def new_home(vm_server, tmp_path_factory):
    """Makes stores that have `tiny`, taken from the user's."""

    def new_home():
        vm_server.images.resolve("tiny")
        home = tmp_path_factory.mktemp("home")
        for part in ("images/tiny", "keys"):
            shutil.copytree(vm_server.home / part, home / part)
        return home

    return new_home


@pytest.fixture
def tiny_home(new_home, monkeypatch):
    """A store of the test's own that has `tiny`; VMFEST_HOME points to it."""
    home = new_home()
    monkeypatch.setenv("VMFEST_HOME", str(home))
    return home
