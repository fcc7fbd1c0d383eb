"""A host of the lane whose machine has ended."""

import pytest

from pytest_vmfest.errors import MachineStateError
from tests.lane.host import Host
from tests.lane.place import PlaceError


class Gone:
    """A node whose QEMU has crashed."""

    @property
    def ssh_command(self):
        """There is nothing to log into."""
        raise MachineStateError("machine 'h' is aborted and cannot be reached")


def test_a_host_whose_emulator_crashed_does_not_answer():
    """It is no error of the lane: another host takes its place."""
    host = Host.__new__(Host)
    host.name, host.node, host._boot_id = "host a1", Gone(), "id"
    assert not host.answers()
    with pytest.raises(PlaceError, match="host a1 is gone: machine 'h' is aborted"):
        host.open("true")
    assert "does not answer any more" in " ".join(host.marks())
