"""Snapshots inside a machine's disk file, of a running machine (by monitor) and of one that is off.

A snapshot's tag says how the machine was when it was taken, as reverting has to bring that back and
QEMU does not keep it: ``running:NAME``, ``paused:NAME``, ``off:NAME`` (without memory).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.qemu.command import DISK_NODE
from pytest_vmfest.errors import DriverError
from pytest_vmfest.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_vmfest.drivers.qemu.monitor import Monitor
    from pytest_vmfest.waiting import Deadline

SAVED_TAG = "saved"
"""The snapshot that holds the memory of a machine in saved state; no user's snapshot is called so."""

_JOB_INTERVAL_S = 0.005


class Mode(Enum):
    """How a machine was when its snapshot was taken."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


@dataclass(frozen=True)
class Snapshot:
    """A user's snapshot."""

    name: str
    mode: Mode

    @property
    def tag(self) -> str:
        """What it is called in the disk file."""
        return f"{self.mode.value}:{self.name}"

    @property
    def has_memory(self) -> bool:
        """Whether memory and devices are in it."""
        return self.mode is not Mode.OFF


def parse_tags(tags: Iterable[str]) -> dict[str, Snapshot]:
    """The users' snapshots among the tags of a disk file, by name, in the order of the tags."""
    modes = {mode.value: mode for mode in Mode}
    found = {}
    for tag in tags:
        mode, colon, name = tag.partition(":")
        if colon and mode in modes:
            found[name] = Snapshot(name, modes[mode])
    return found


# --- a running machine ------------------------------------------------------------------------------


def live_tags(monitor: Monitor) -> list[str]:
    """The tags in the disk file of a running machine, oldest first."""
    for node in monitor.execute("query-named-block-nodes", {"flat": True}):
        if node.get("node-name") == DISK_NODE:
            return [entry["name"] for entry in node["image"].get("snapshots", [])]
    return []


def save(monitor: Monitor, tag: str, deadline: Deadline) -> None:
    """Keep disk, memory and devices under ``tag``. The guest stands still meanwhile."""
    _job(monitor, "snapshot-save", tag, {"vmstate": DISK_NODE}, deadline)


def load(monitor: Monitor, tag: str, deadline: Deadline) -> None:
    """Go back to disk, memory and devices under ``tag``. On failure QEMU leaves the guest halted."""
    _job(monitor, "snapshot-load", tag, {"vmstate": DISK_NODE}, deadline)


def delete(monitor: Monitor, tag: str, deadline: Deadline) -> None:
    """Forget what is kept under ``tag``."""
    _job(monitor, "snapshot-delete", tag, {}, deadline)


def _job(monitor: Monitor, command: str, tag: str, more: dict[str, object], deadline: Deadline) -> None:
    """Run one of QEMU's snapshot jobs to its end (QMP reference, "Background jobs")."""
    job = f"vmfest-{uuid.uuid4()}"
    monitor.execute(command, {"job-id": job, "tag": tag, "devices": [DISK_NODE], **more})

    def concluded() -> dict[str, str] | None:
        # QEMU works on the job in its main loop, and answers nothing until it has done so.
        jobs = monitor.execute("query-jobs", timeout_s=deadline.timeout())
        return next((j for j in jobs if j["id"] == job and j["status"] == "concluded"), None)

    done = wait_for(
        concluded,
        deadline,
        what=f"machine {monitor.machine!r}: {command} of {tag!r}",
        interval_s=_JOB_INTERVAL_S,
    )
    assert done is not None
    monitor.execute("job-dismiss", {"id": job})
    if "error" in done:
        raise DriverError(f"machine {monitor.machine!r}: {command} of {tag!r} failed: {done['error']}")
