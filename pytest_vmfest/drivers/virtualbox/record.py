"""What VirtualBox does not know of a machine: kept with it as extra data, for any process to operate it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_vmfest.specs import PrivateNic

if TYPE_CHECKING:
    from virtualbox.library import IMachine

    from pytest_vmfest.specs import MachineSpec, NetworkMode

GROUP = "/vmfest"
"""The group in which VirtualBox shows the machines."""

_KEY = "vmfest/machine"
_ENDED_KEY = "vmfest/powered-down"


@dataclass(frozen=True)
class Record:
    """A machine's image, networks and tags; where it is to be kept, or what it went on from."""

    image: str
    network: NetworkMode
    nics: tuple[PrivateNic, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    freeze_to: str = ""
    thaw_from: str = ""

    @classmethod
    def of(cls, spec: MachineSpec) -> Record:
        """The record of a machine to be."""
        return cls(
            spec.image.name,
            spec.network,
            spec.nics,
            dict(spec.tags),
            freeze_to=str(spec.freeze_to or ""),
            thaw_from=str(spec.thaw_from or ""),
        )

    def write(self, machine: IMachine) -> None:
        """Keep it with the machine."""
        machine.set_extra_data(_KEY, json.dumps(asdict(self)))


def read(machine: IMachine) -> Record | None:
    """The machine's record; None if it has none, or none that can be read: then it is not one of ours."""
    try:
        data: dict[str, Any] = json.loads(machine.get_extra_data(_KEY))
        return Record(
            image=data["image"],
            network=data["network"],
            nics=tuple(PrivateNic(**nic) for nic in data["nics"]),
            tags=data["tags"],
            created=data["created"],
            freeze_to=data.get("freeze_to", ""),
            thaw_from=data.get("thaw_from", ""),
        )
    except (ValueError, KeyError, TypeError):
        return None


def mark_powered_down(machine: IMachine) -> None:
    """Say that an aborted machine counts as powered off, until something happens to it again."""
    machine.set_extra_data(_ENDED_KEY, _moment(machine))


def is_powered_down(machine: IMachine) -> bool:
    """Whether an aborted machine counts as powered off."""
    return str(machine.get_extra_data(_ENDED_KEY)) == _moment(machine)


def _moment(machine: IMachine) -> str:
    # In seconds: VirtualBox counts milliseconds, but forgets them when its service ends.
    return str(machine.last_state_change // 1000)
