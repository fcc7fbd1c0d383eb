"""Errors that every driver raises in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import (
    ConfigurationError,
    DriverError,
    MachineNotFoundError,
    MachineStateError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from pytest_vmfest.waiting import Deadline

T = TypeVar("T")

# Of the 255 bytes that QEMU allows, some are for its driver's prefix.
_SNAPSHOT_NAME_BYTES = 200


def no_machine(name: str) -> MachineNotFoundError:
    """There is no machine of that name."""
    return MachineNotFoundError(
        f"there is no machine named {name!r}", hint="list what there is with: vmfest instance list"
    )


def wrong_state(name: str, state: MachineState, purpose: str) -> MachineStateError:
    """The machine's state does not allow it; ``purpose`` goes on from "cannot"."""
    return MachineStateError(
        f"machine {name!r} is {state.value} and cannot {purpose}",
        infrastructure=state is MachineState.ABORTED,
    )


def still_on(name: str, deadline: Deadline) -> WaitTimeoutError:
    """The guest did not heed the power button."""
    return WaitTimeoutError(
        f"machine {name!r}: the guest did not shut down within {deadline.timeout_s:g} s",
        hint="does anything in it (systemd-logind, acpid) heed the power button? power_down() cuts the power",
    )


def no_network(name: str) -> DriverError:
    """There is no private network of that name."""
    return DriverError(f"there is no private network named {name!r}", hint="create it first")


def check_snapshot_name(name: str, taken: Collection[str], machine: str) -> None:
    """Raise if ``name`` cannot be given to a new snapshot of the machine."""
    if not name or not name.isprintable() or len(name.encode()) > _SNAPSHOT_NAME_BYTES:
        raise ConfigurationError(
            f"{name!r} cannot be the name of a snapshot",
            hint=f"use 1 to {_SNAPSHOT_NAME_BYTES} printable characters",
        )
    if name in taken:
        raise MachineStateError(
            f"machine {machine!r} has a snapshot named {name!r} already", hint="delete it first"
        )


def find_snapshot(name: str, known: Mapping[str, T], machine: str) -> T:
    """The snapshot called ``name``; `MachineStateError` lists those that there are."""
    if name not in known:
        raise MachineStateError(
            f"machine {machine!r} has no snapshot named {name!r}",
            hint=f"it has: {', '.join(known)}" if known else "it has none",
        )
    return known[name]


def no_space_left(place: Path) -> str:
    """Why a machine whose disk cannot grow was halted; see `Driver.standstill`."""
    return f"there is no space left for its disk in {place}: free some space, then resume it"
