"""Snapshots: VirtualBox's own, found by our names, which are unique for a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.virtualbox.trouble import is_null

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtualbox.library import IMachine, ISnapshot

# Kept as the description of snapshots that are to come back halted: VirtualBox would let them run.
_PAUSED = "taken while paused"


@dataclass(frozen=True)
class Snapshot:
    """A snapshot; ``has_memory`` if the machine was on, ``paused`` if it stood still then."""

    name: str
    com: ISnapshot
    has_memory: bool
    paused: bool


def description(*, paused: bool) -> str:
    """What is to be kept with a new snapshot."""
    return _PAUSED if paused else ""


def of(machine: IMachine) -> dict[str, Snapshot]:
    """The machine's snapshots by name, oldest first."""
    if not machine.snapshot_count:
        return {}
    found = sorted(_below(machine.find_snapshot("")), key=lambda snapshot: snapshot.time_stamp)
    return {
        str(com.name): Snapshot(str(com.name), com, bool(com.online), str(com.description) == _PAUSED)
        for com in found
    }


def _below(snapshot: ISnapshot) -> Iterator[ISnapshot]:
    if is_null(snapshot):
        return
    yield snapshot
    for child in snapshot.children:
        yield from _below(child)
