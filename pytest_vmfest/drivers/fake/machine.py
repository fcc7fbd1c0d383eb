"""One fake machine: its disk, its memory, its console, and what becomes of them."""

from __future__ import annotations

import struct
import time
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.fake.files import FakeFiles
from pytest_vmfest.keyboard import parse_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_vmfest.drivers.fake.world import World
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.specs import MachineSpec

_SCREEN_SIZE = (640, 400)
# What each stroke types, by the layout that made strokes of text.
_TYPED = {parse_keys(char)[0].keys: char for char in map(chr, range(32, 127))}

_FOLDERS = (
    "/bin",
    "/dev/shm",
    "/etc",
    "/home",
    "/proc/sys/kernel/random",
    "/root",
    "/run",
    "/tmp",
    "/usr/bin",
)
_IN_MEMORY = ("/dev/shm", "/proc", "/run", "/sys", "/tmp")


@dataclass(frozen=True)
class Memory:
    """What the guest loses with its power."""

    hostname: str = "localhost"
    boot_id: str = ""
    typed: str = ""


@dataclass(frozen=True)
class _Kept:
    """A snapshot: how the machine was."""

    state: MachineState
    memory: Memory
    files: FakeFiles


class FakeMachine:
    """A machine made of memory. The driver sees to states and locks, this class to what is in it."""

    def __init__(self, spec: MachineSpec, world: World) -> None:
        """A powered-off machine with a fresh disk."""
        self.spec = spec
        self.world = world
        self.created = time.time()
        self.state = MachineState.POWERED_OFF
        self.memory = Memory()
        self.console = ""
        self.snapshots: dict[str, _Kept] = {}
        self.ports: dict[int, int] = {}
        self.connection_era = 0
        """Changes whenever connections into the guest break."""
        self.files = _fresh_files(spec)

    def boot(self) -> None:
        """Power on, or reset: a new boot of what is on disk."""
        self.memory = Memory(self._saved_hostname(), str(uuid.uuid4()))
        for path in _IN_MEMORY:
            if self.files.entry(path):
                self.files.remove(path, recursive=True)
        for path in _IN_MEMORY:
            self.files.make_folder(path, parents=True)
        self.files.make_folder("/proc/sys/kernel/random", parents=True)
        self.files.write("/proc/sys/kernel/random/boot_id", f"{self.memory.boot_id}\n".encode())
        macs = ["52:54:00:00:00:01", *(nic.mac for nic in self.spec.nics)]
        for number, mac in enumerate(macs):
            self.files.make_folder(f"/sys/class/net/eth{number}", parents=True)
            self.files.write(f"/sys/class/net/eth{number}/address", f"{mac}\n".encode())
        self.console += f"Fake Linux on a fake machine, image {self.spec.image.name}\nready\n"
        self.state = MachineState.RUNNING
        self.ports = {22: self.world.free_port()}
        self.break_connections()

    def end(self, state: MachineState) -> None:
        """No longer run, and lose what is in memory unless it is saved."""
        if state is not MachineState.SAVED:
            self.memory = Memory()
        self.state = state
        self.ports = {}
        self.break_connections()

    def go_on(self) -> None:
        """Run on from the saved state."""
        self.state = MachineState.RUNNING
        self.ports = {22: self.world.free_port()}

    def break_connections(self) -> None:
        """Whoever is connected to the guest loses it."""
        self.connection_era += 1

    def type(self, strokes: Sequence[Stroke]) -> None:
        """Take keys; the guest writes each line that was typed to its console."""
        for stroke in strokes:
            typed = self.memory.typed
            if stroke.keys == ("ret",):
                self.console += f"{typed}\n"
                typed = ""
            elif stroke.keys == ("backspace",):
                typed = typed[:-1]
            else:
                typed += _TYPED.get(stroke.keys, "")
            self.memory = replace(self.memory, typed=typed)

    def take_snapshot(self, name: str) -> None:
        """Keep files, memory and state."""
        self.snapshots[name] = _Kept(self.state, self.memory, self.files.copy())

    def revert(self, name: str) -> None:
        """Be as the snapshot is."""
        kept = self.snapshots[name]
        self.files = kept.files.copy()
        self.memory = kept.memory
        if kept.state in (MachineState.RUNNING, MachineState.PAUSED):
            self.ports = self.ports or {22: self.world.free_port()}
            self.state = kept.state
            self.break_connections()
        else:
            self.end(MachineState.POWERED_OFF)

    def draw(self, path: Path) -> None:
        """Write the screen, which is a blue one, as PNG."""
        path.write_bytes(_png(*_SCREEN_SIZE, colour=b"\x20\x40\x80"))

    def _saved_hostname(self) -> str:
        entry = self.files.entry("/etc/hostname")
        return entry.data.decode(errors="replace").strip() if entry else "localhost"


def _fresh_files(spec: MachineSpec) -> FakeFiles:
    files = FakeFiles()
    for path in _FOLDERS:
        files.make_folder(path, parents=True)
    user = spec.image.login.username
    if user != "root":
        files.make_folder(f"/home/{user}")
    files.write("/etc/hostname", b"localhost\n")
    files.write("/etc/hosts", b"127.0.0.1 localhost\n")
    files.write("/etc/os-release", f'PRETTY_NAME="fake {spec.image.name}"\nID=fake\n'.encode())
    return files


def _png(width: int, height: int, colour: bytes) -> bytes:
    """A PNG of one colour (https://www.w3.org/TR/png/): header, compressed rows, end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + colour * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
