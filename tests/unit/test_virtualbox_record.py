"""What is kept with a machine as extra data."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers.virtualbox import record
from pytest_vmfest.specs import HardwareModel, ImageModel, Login, MachineSpec, PrivateNic


class Machine:
    """Keeps extra data; what was never set is empty, as in VirtualBox."""

    def __init__(self):
        self.data = {}
        self.last_state_change = 1500

    def set_extra_data(self, key, value):
        """Keep a value."""
        self.data[key] = value

    def get_extra_data(self, key):
        """A value, or nothing."""
        return self.data.get(key, "")


@pytest.fixture
def spec():
    """A machine with everything that is kept."""
    login = Login("root", password="secret-password")
    return MachineSpec(
        "m",
        ImageModel("tiny", Path("/images/tiny.vdi"), "vdi", login),
        HardwareModel("small", 64, 1),
        network="nat",
        nics=(PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1"),),
        permanent=True,
        tags={"run": "r", "ü": "'\""},
    )


def test_it_comes_back_as_it_was(spec):
    """Image, networks and tags survive."""
    machine, written = Machine(), record.Record.of(spec)
    written.write(machine)
    assert record.read(machine) == written
    assert (written.image, written.network, written.nics) == ("tiny", "nat", spec.nics)
    assert written.tags == spec.tags


def test_what_another_version_kept_besides_is_passed_over(spec):
    """Such a machine is ours all the same."""
    machine, written = Machine(), record.Record.of(spec)
    written.write(machine)
    ((key, text),) = machine.data.items()
    machine.data[key] = json.dumps({**json.loads(text), "permanent": "/images/tiny.vdi"})
    assert record.read(machine) == written


def test_no_secrets_are_kept(spec):
    """Whoever may look at the user's machines finds no password."""
    machine = Machine()
    record.Record.of(spec).write(machine)
    assert "secret-password" not in str(machine.data)


@pytest.mark.parametrize("text", ["", "no json", "{}", "[]", '{"image": 1}'])
def test_a_machine_without_a_sound_record_is_not_ours(text):
    """Nothing is concluded from half a record."""
    assert record.read(SimpleNamespace(get_extra_data=lambda key: text)) is None


def test_an_aborted_machine_counts_as_powered_down_until_it_changes():
    """The mark is bound to the very end that it was made for."""
    machine = Machine()
    assert not record.is_powered_down(machine)
    record.mark_powered_down(machine)
    assert record.is_powered_down(machine)
    machine.last_state_change = 1000  # as a new service knows it
    assert record.is_powered_down(machine)
    machine.last_state_change = 2000
    assert not record.is_powered_down(machine)
