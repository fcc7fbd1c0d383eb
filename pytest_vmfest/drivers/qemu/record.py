"""What is kept on disk of a machine, so that any process can operate it.

A machine is a folder; these are its files. ``machine.json`` is written beside and then renamed, so that a
reader sees the old record or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.refusals import no_machine
from pytest_vmfest.errors import (
    ConfigurationError,
    DestroyError,
    DriverError,
    MachineExistsError,
)
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.processes import Process
from pytest_vmfest.specs import DirectBoot, HardwareModel, ImageModel, MachineSpec, PrivateNic, check_label

if TYPE_CHECKING:
    from collections.abc import Mapping

DISK = "disk.qcow2"
CONSOLE = "console.log"
CONTROL = "ctl.sock"
EFI_VARIABLES = "efi-variables.fd"
LOG = "qemu.log"
PID_FILE = "qemu.pid"
SCREEN = "screen.png"
_RECORD = "machine.json"

_LOG_TAIL_LINES = 5


@dataclass(frozen=True)
class Record:
    """A machine as its record tells of it.

    ``process`` is the one that was started last, and None once its end is accounted for; ``starting`` says
    that there may be one which the record does not know yet; ``ssh_port`` is where port 22 of the guest is
    reached on loopback while ``process`` lives. Without ``process``, ``saved`` says whether memory waits
    on disk. ``was_on`` says whether its guest ever ran. Of a machine that goes on from a frozen one, ``mac``
    is the address of slot 0 there, and ``stopped`` when that was halted; ``late_s`` is for how many seconds
    the guest had stood still before it last went on. ``halted`` tells by snapshot with memory when the guest
    was halted for it.
    """

    spec: MachineSpec
    created: float = field(default_factory=time.time)
    process: Process | None = None
    starting: bool = False
    ssh_port: int | None = None
    saved: bool = False
    was_on: bool = False
    mac: str | None = None
    stopped: float | None = None
    late_s: float = 0.0
    halted: Mapping[str, float] = field(default_factory=dict)

    def off(self, *, saved: bool = False) -> Record:
        """The record of the machine when no process of it is left."""
        return replace(self, process=None, starting=False, ssh_port=None, saved=saved)


class Store:
    """The folders of all machines."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "machines"

    def folder(self, name: str) -> Path:
        """Where the machine's files are; `MachineNotFoundError` for a name that no machine can have."""
        try:
            check_label(name, "machine name")
        except ConfigurationError:
            raise no_machine(name) from None
        return self._folder / name

    def add(self, record: Record) -> Path:
        """Make the folder of a new machine, with its record. Of two who try at once, one succeeds.

        Raises `MachineExistsError`, `StoreError`.
        """
        folder = self.folder(record.spec.name)
        with writing_to(folder):
            make_private(self._folder)
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                raise MachineExistsError(
                    f"a machine named {record.spec.name!r} exists already in {self._folder}",
                    hint=f"remove it with: vmfest instance destroy {record.spec.name}",
                ) from None
        try:
            self.save(record)
        except BaseException:
            self.remove(record.spec.name)
            raise
        return folder

    def save(self, record: Record) -> None:
        """Replace the record."""
        folder = self.folder(record.spec.name)
        beside = folder / f"{_RECORD}.new"
        with writing_to(folder):
            beside.write_text(json.dumps(_to_json(record), indent=1))
            beside.replace(folder / _RECORD)

    def load(self, name: str) -> Record:
        """The machine's record; `MachineNotFoundError` without one, `DriverError` if it is damaged."""
        path = self.folder(name) / _RECORD
        try:
            return _from_json(json.loads(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise no_machine(name) from None
        except (ValueError, KeyError, TypeError, AttributeError, ConfigurationError) as error:
            raise DriverError(
                f"the record of machine {name!r} is damaged: {path}: {error!r}",
                hint=f"remove the machine with: vmfest instance destroy {name}",
            ) from error

    def names(self) -> list[str]:
        """The names of all machines, also of half-created ones."""
        try:
            return sorted(entry.name for entry in os.scandir(self._folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        """Remove the machine's folder; `DestroyError` names what is left of it."""
        folder = self.folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) or ["the folder"]
            raise DestroyError(f"machine {name!r}: cannot remove {', '.join(left)} in {folder}")


def log_tail(folder: Path) -> str:
    """The last lines that QEMU printed."""
    try:
        text = (folder / LOG).read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])


# --- JSON ------------------------------------------------------------------------------------------
# Of the image only what is needed to run it again: its login holds secrets, which stay in the store.


def _to_json(record: Record) -> dict[str, Any]:
    spec, image = record.spec, record.spec.image
    boot = image.direct_boot
    return {
        "name": spec.name,
        "image": {"name": image.name, "disk": str(image.disk), "format": image.format},
        "firmware": image.firmware,
        "direct_boot": boot
        and {
            "kernel": str(boot.kernel),
            "initrd": _text(boot.initrd),
            "command_line": boot.command_line,
        },
        "hardware": spec.hardware.as_json(),
        "network": spec.network,
        "nics": [asdict(nic) for nic in spec.nics],
        "tags": dict(spec.tags),
        "created": record.created,
        "process": record.process and asdict(record.process),
        "starting": record.starting,
        "ssh_port": record.ssh_port,
        "saved": record.saved,
        "was_on": record.was_on,
        "mac": record.mac,
        "stopped": record.stopped,
        "late_s": record.late_s,
        "halted": dict(record.halted),
        "freeze_to": _text(spec.freeze_to),
        "thaw_from": _text(spec.thaw_from),
    }


def _from_json(data: dict[str, Any]) -> Record:
    boot = data["direct_boot"]
    image = ImageModel(
        name=data["image"]["name"],
        disk=Path(data["image"]["disk"]),
        format=data["image"]["format"],
        firmware=data["firmware"],
        direct_boot=boot
        and DirectBoot(
            kernel=Path(boot["kernel"]),
            initrd=_path(boot["initrd"]),
            command_line=boot["command_line"],
        ),
    )
    spec = MachineSpec(
        name=data["name"],
        image=image,
        hardware=HardwareModel.from_json(data["hardware"]),
        network=data["network"],
        nics=tuple(PrivateNic(**nic) for nic in data["nics"]),
        tags=data["tags"],
        # Earlier versions had none of these.
        freeze_to=_path(data.get("freeze_to")),
        thaw_from=_path(data.get("thaw_from")),
    )
    return Record(
        spec=spec,
        created=data["created"],
        process=data["process"] and Process(**data["process"]),
        starting=data["starting"],
        ssh_port=data["ssh_port"],
        saved=data["saved"],
        was_on=data.get("was_on", True),
        mac=data.get("mac"),
        stopped=data.get("stopped"),
        late_s=data.get("late_s", 0.0),
        halted=data.get("halted", {}),
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
