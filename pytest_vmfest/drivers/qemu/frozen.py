"""Machines frozen with their memory, for others to go on from.

A frozen machine is a folder with these files, which nobody writes to any more. Its memory is a file that was
the machine's memory itself; whoever goes on from it has that file as memory, too, copied page by page as it
writes (``x-ignore-shared`` keeps the pages out of what QEMU calls migration). So neither freezing nor going
on takes the time that memory of that size would.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.disk_images import cache_name
from pytest_vmfest.drivers.host_cpu import host_cpu
from pytest_vmfest.drivers.qemu import record
from pytest_vmfest.drivers.qemu.command import Memory, Wiring, command_line, mac_address
from pytest_vmfest.errors import DriverError, ThawError
from pytest_vmfest.folders import writing_to
from pytest_vmfest.waiting import wait_for

if TYPE_CHECKING:
    from typing import Literal

    from pytest_vmfest.drivers.qemu.monitor import Monitor
    from pytest_vmfest.drivers.qemu.record import Record
    from pytest_vmfest.specs import MachineSpec
    from pytest_vmfest.waiting import Deadline

MEMORY = "memory"
OVERLAY = "overlay.qcow2"
"""An empty overlay on the frozen disk, to be copied."""
STATE = "state"
_FACTS = "frozen.json"

# Counted up when what is in the folder changes.
_FORMAT = 4

_POLL_S = 0.001
_PLACEHOLDER = "frozen"


@dataclass(frozen=True)
class Facts:
    """What has to be known of a frozen machine: the MAC of slot 0, and when it was halted.

    Its user-mode network, which is frozen with it, has given the guest's address to that MAC.
    """

    mac: str
    stopped: float
    """Seconds since the epoch."""


def key(
    spec: MachineSpec,
    program: str,
    version: str,
    accel: Literal["kvm", "tcg"],
    cpu: str | None,
    firmware: Path | None,
) -> str:
    """What a frozen machine of this spec depends on, on this host: else nobody can go on from it.

    Raises `OSError` for files of the image that cannot be read.
    """
    alike = replace(
        spec,
        name=_PLACEHOLDER,
        nics=tuple(replace(nic, network="", mac="", address="") for nic in spec.nics),
        tags={},
        freeze_to=None,
        thaw_from=None,
    )
    boot = spec.image.direct_boot
    files = [Path(program), firmware, *((boot.kernel, boot.initrd) if boot else ())]
    command = command_line(
        alike,
        program=program,
        accel=accel,
        cpu=cpu,
        wiring=Wiring(0, (0,) * len(spec.nics)),
        memory=Memory(Path(), is_shared=False),
    )
    facts = [
        _FORMAT,
        command,
        version,
        spec.firmware,
        cache_name(spec.image),
        *(_identity(file) for file in files if file),
    ]
    if accel == "kvm":
        # What KVM offers to guests changes with the kernel, too.
        facts += [os.uname().release, host_cpu()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _identity(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def memory_of(machine: Record) -> Memory | None:
    """The file that is the machine's memory when it is started now; later starts find the usual memory."""
    spec = machine.spec
    if machine.was_on:
        return None
    if spec.freeze_to is not None:
        return Memory(spec.freeze_to / MEMORY, is_shared=True)
    return Memory(spec.thaw_from / MEMORY, is_shared=False) if spec.thaw_from else None


def freeze(monitor: Monitor, machine: Record, target: Path, deadline: Deadline) -> None:
    """Halt the machine for good, and keep the state of its devices in ``target``.

    Its process is to be ended then, and the rest moved by `take_over`.
    """
    monitor.halt()
    facts = Facts(machine.mac or mac_address(machine.spec.name), stopped=monitor.halted)
    _leave_memory_out(monitor, True)
    monitor.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(target / STATE))}"})

    def done() -> bool:
        status = monitor.execute("query-migrate").get("status")
        if status == "failed":
            raise DriverError(f"machine {monitor.machine!r}: QEMU could not write its state to {target}")
        return bool(status == "completed")

    wait_for(done, deadline, what=f"machine {monitor.machine!r} to be frozen", interval_s=_POLL_S)
    with writing_to(target):
        (target / _FACTS).write_text(json.dumps(asdict(facts)))


def take_over(folder: Path, target: Path, firmware: bool) -> Path:
    """Move what a frozen machine without a process has left, but for its record; returns the disk's path."""
    with writing_to(target):
        for name in (record.DISK, record.CONSOLE, *([record.EFI_VARIABLES] if firmware else [])):
            (folder / name).replace(target / name)
    return target / record.DISK


def facts_of(source: Path) -> Facts:
    """What has to be known of the frozen machine in ``source``; `ThawError` if it is not there."""
    try:
        return Facts(**json.loads((source / _FACTS).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ThawError(f"there is no frozen machine in {source}: {error}") from error


def furnish(folder: Path, source: Path, firmware: bool) -> None:
    """Fill the folder of a new machine that is to go on from the frozen one in ``source``."""
    try:
        shutil.copyfile(source / OVERLAY, folder / record.DISK)
        for name in (record.CONSOLE, *([record.EFI_VARIABLES] if firmware else [])):
            shutil.copyfile(source / name, folder / name)
    except FileNotFoundError as error:
        raise ThawError(f"the frozen machine in {source} is not whole: {error}") from error
    except OSError:
        with writing_to(folder):
            raise


def load(monitor: Monitor, source: Path, deadline: Deadline) -> None:
    """Have a QEMU that waits for it take on the state of the frozen machine in ``source``, halted."""
    _leave_memory_out(monitor, True)
    monitor.execute("migrate-incoming", {"uri": f"exec:cat {shlex.quote(str(source / STATE))}"})
    wait_for(
        lambda: monitor.execute("query-status")["status"] != "inmigrate",
        deadline,
        what=f"machine {monitor.machine!r} to go on from {source}",
        interval_s=_POLL_S,
    )
    # Its snapshots have to hold the memory.
    _leave_memory_out(monitor, False)


def _leave_memory_out(monitor: Monitor, state: bool) -> None:
    capability = {"capability": "x-ignore-shared", "state": state}
    monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
