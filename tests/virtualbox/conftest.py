"""VirtualBox's service, for tests that start no machine."""

import pytest

from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.errors import DriverUnavailableError


@pytest.fixture(scope="session")
def connection(tmp_path_factory):
    """A line to VirtualBox's service, with settings and a registry of its own."""
    home = tmp_path_factory.mktemp("virtualbox")
    with pytest.MonkeyPatch.context() as patched:
        # By the second, processes find the service that belongs to the first.
        patched.setenv("VBOX_USER_HOME", str(home))
        patched.setenv("VBOX_IPC_SOCKETID", home.parent.name)
        try:
            yield connect(DriverSettings(home))
        except DriverUnavailableError as error:
            pytest.skip(error.message)
