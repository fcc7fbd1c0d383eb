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
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.disk_images import cache_name
from pytest_vmfest.drivers.qemu import record
from pytest_vmfest.drivers.qemu.command import Memory, Wiring, command_line, mac_address
from pytest_vmfest.errors import DriverError
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.waiting import wait_for

if TYPE_CHECKING:
    from typing import Literal

    from pytest_vmfest.drivers.qemu.monitor import Monitor
    from pytest_vmfest.specs import MachineSpec
    from pytest_vmfest.waiting import Deadline

MEMORY = "memory"
OVERLAY = "overlay.qcow2"
"""An empty overlay on the frozen disk, to be copied."""
STATE = "state"
_FACTS = "frozen.json"

# Counted up when what is in the folder changes.
_FORMAT = 2

_POLL_S = 0.001
_PLACEHOLDER = "frozen"


def key(spec: MachineSpec, program: str, version: str, accel: Literal["kvm", "tcg"], cpu: str | None) -> str:
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
    files = [Path(program), *(file for file in ((boot.kernel, boot.initrd) if boot else ()) if file)]
    command = command_line(
        alike,
        program=program,
        accel=accel,
        cpu=cpu,
        wiring=Wiring(0, (0,) * len(spec.nics)),
        memory=Memory(Path(), is_shared=False),
    )
    facts = [
        command,
        version,
        spec.firmware,
        cache_name(spec.image),
        *(_identity(file) for file in files if file),
    ]
    if accel == "kvm":
        facts.append(_host_cpu())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _identity(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _host_cpu() -> list[str]:
    """What tells a host's CPU from another one."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    told = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    return [line for line in lines if line.partition(":")[0].strip() in told]


def mac_of(spec: MachineSpec) -> str:
    """The MAC of slot 0: the frozen machine's own, which the user-mode network has given an address to."""
    if spec.thaw_from is None:
        return mac_address(spec.name)
    mac: str = _facts(spec.thaw_from)["mac"]
    return mac


def memory_of(spec: MachineSpec, *, at_first: bool) -> Memory | None:
    """Where the machine's memory is when QEMU starts; ``at_first``: for the first time.

    Later starts leave both folders alone: one that was never frozen may be somebody else's by then.
    """
    if not at_first:
        return None
    if spec.freeze_to is not None:
        return Memory(spec.freeze_to / MEMORY, is_shared=True)
    if spec.thaw_from is not None:
        return Memory(spec.thaw_from / MEMORY, is_shared=False)
    return None


def prepare(target: Path) -> None:
    """Make the folder for a machine that is to be frozen, empty."""
    with writing_to(target):
        shutil.rmtree(target, ignore_errors=True)
        make_private(target)


def freeze(monitor: Monitor, spec: MachineSpec, target: Path, deadline: Deadline) -> None:
    """Halt the machine for good, and keep the state of its devices in ``target``.

    Its process is to be ended then, and the rest moved by `take_over`.
    """
    monitor.execute("stop")
    stopped = time.time()
    _leave_memory_out(monitor, True)
    monitor.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(target / STATE))}"})

    def done() -> bool:
        status = monitor.execute("query-migrate").get("status")
        if status == "failed":
            raise DriverError(f"machine {monitor.machine!r}: QEMU could not write its state to {target}")
        return bool(status == "completed")

    wait_for(done, deadline, what=f"machine {monitor.machine!r} to be frozen", interval_s=_POLL_S)
    with writing_to(target):
        (target / _FACTS).write_text(json.dumps({"stopped": stopped, "mac": mac_of(spec)}))


def take_over(folder: Path, target: Path, firmware: bool) -> Path:
    """Move what a frozen machine without a process has left, but for its record; returns the disk's path."""
    with writing_to(target):
        for name in (record.DISK, record.CONSOLE, *([record.EFI_VARIABLES] if firmware else [])):
            (folder / name).replace(target / name)
        for path in target.iterdir():
            _write_out(path)
    return target / record.DISK


def _write_out(path: Path) -> None:
    """See to it that the file is whole even if the host's power fails; nobody writes to it from now on."""
    path.chmod(0o400)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def furnish(folder: Path, source: Path, firmware: bool) -> None:
    """Fill the folder of a new machine that is to go on from the frozen one in ``source``."""
    with writing_to(folder):
        shutil.copyfile(source / OVERLAY, folder / record.DISK)
        for name in (record.CONSOLE, *([record.EFI_VARIABLES] if firmware else [])):
            shutil.copyfile(source / name, folder / name)


def thaw(monitor: Monitor, source: Path, deadline: Deadline) -> float:
    """Let a machine, whose QEMU waits for it, go on from the frozen one in ``source``.

    Returns for how many seconds that had stood still.
    """
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
    stopped: float = _facts(source)["stopped"]
    monitor.execute("cont")
    return time.time() - stopped


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_bytes())
    return facts


def _leave_memory_out(monitor: Monitor, state: bool) -> None:
    capability = {"capability": "x-ignore-shared", "state": state}
    monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})
