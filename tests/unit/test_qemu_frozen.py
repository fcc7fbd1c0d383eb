"""Where a machine's memory is that is to be frozen, or goes on from a frozen one."""

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vmfest.drivers.qemu import frozen
from pytest_vmfest.drivers.qemu.command import Memory
from pytest_vmfest.drivers.qemu.record import Record
from pytest_vmfest.specs import HARDWARE, ImageModel, MachineSpec

SPEC = MachineSpec("m", ImageModel("tiny", Path("/store/disk"), "qcow2"), HARDWARE["micro"])
FOLDER = Path("/store/templates/tiny-1")


@pytest.mark.parametrize(
    ("spec", "memory"),
    [
        (SPEC, None),
        (replace(SPEC, freeze_to=FOLDER), Memory(FOLDER / "memory", is_shared=True)),
        (replace(SPEC, thaw_from=FOLDER), Memory(FOLDER / "memory", is_shared=False)),
    ],
)
def test_the_memory_is_in_the_folder_at_first(spec, memory):
    """What is to be frozen writes there, what goes on from there does not; later starts have their own.

    One that was to be frozen and was not, such as one that did not come up and was kept, would else write to
    what another one has frozen there meanwhile.
    """
    assert frozen.memory_of(Record(spec)) == memory
    assert frozen.memory_of(Record(spec, was_on=True)) is None


def test_the_key_tells_what_is_in_the_folder(tmp_path, monkeypatch):
    """What was frozen by another version of ours, with other files, is not taken."""
    (tmp_path / "disk").touch()
    (tmp_path / "qemu").touch()
    spec = replace(SPEC, image=ImageModel("tiny", tmp_path / "disk", "qcow2"))

    def key(spec):
        return frozen.key(spec, str(tmp_path / "qemu"), "7.2.22", "tcg", None, None)

    before = key(spec)
    assert key(replace(spec, name="other", thaw_from=FOLDER)) == before
    monkeypatch.setattr(frozen, "_FORMAT", frozen._FORMAT + 1)
    assert key(spec) != before
