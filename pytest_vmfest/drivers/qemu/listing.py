"""Rows of a listing of machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import ON, MachineInfo, MachineState
from pytest_vmfest.drivers.qemu.nat import LOOPBACK
from pytest_vmfest.specs import Endpoint

if TYPE_CHECKING:
    from pytest_vmfest.drivers.qemu.record import Record


def info(machine: Record, state: MachineState) -> MachineInfo:
    """The row of a machine that is in ``state``."""
    spec = machine.spec
    port = machine.ssh_port if state in ON else None
    return MachineInfo(
        name=spec.name,
        state=state,
        image=spec.image.name,
        memory_mib=spec.hardware.memory_mib,
        cpus=spec.hardware.cpus,
        tags=spec.tags,
        created=machine.created,
        endpoint=None if port is None else Endpoint(LOOPBACK, port),
        template=spec.thaw_from.name if spec.thaw_from else "",
    )
