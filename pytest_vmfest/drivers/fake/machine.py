"""One fake machine: its disk, its memory, its console, and what becomes of them."""

from __future__ import annotations

import struct
import time
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import ON, MachineInfo, MachineState
from pytest_vmfest.drivers.fake.files import FakeFiles
from pytest_vmfest.keyboard import parse_keys
from pytest_vmfest.specs import Endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_vmfest.drivers.fake.world import World
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.specs import MachineSpec

_SCREEN_SIZE = (640, 400)
# What each stroke types, by the layout that made strokes of text.
_TYPED = {parse_keys(char)[0].keys: char for char in map(chr, range(32, 127))}

_FOLDERS = ("/bin", "/dev", "/etc", "/home", "/root", "/usr/bin")
_IN_MEMORY = ("/proc/sys/kernel/random", "/run", "/tmp")


@dataclass(frozen=True)
class Memory:
    """What the guest loses with its power."""

    hostname: str = "localhost"
    boot_id: str = ""
    typed: str = ""


@dataclass(frozen=True)
class Kept:
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
        self.snapshots: dict[str, Kept] = {}
        self.ports: dict[int, int] = {}
        self.connection_era = 0
        """Changes whenever connections into the guest break."""
        self.files = _fresh_files(spec)

    def info(self) -> MachineInfo:
        """Its row in a listing."""
        spec, hardware, port = self.spec, self.spec.hardware, self.ports.get(22)
        endpoint = Endpoint("127.0.0.1", port) if port else None
        about = (spec.image.name, hardware.memory_mib, hardware.cpus, spec.tags)
        return MachineInfo(spec.name, self.state, *about, self.created, endpoint)

    def boot(self) -> None:
        """Power on, or reset: a new boot of what is on disk."""
        with self.world.lock:
            self.memory = Memory(self._saved_hostname(), str(uuid.uuid4()))
            for path in _IN_MEMORY:
                self.files.remove(path, recursive=True, missing_ok=True)
                self.files.make_folder(path, parents=True)
            self.files.write("/proc/sys/kernel/random/boot_id", f"{self.memory.boot_id}\n".encode())
            self.console += f"Fake Linux on a fake machine, image {self.spec.image.name}\nready\n"
            self.go_on()
            self.break_connections()

    def end(self, state: MachineState) -> None:
        """No longer run, and lose what is in memory unless it is saved."""
        with self.world.lock:
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

    def home(self, user: str) -> str:
        """A user's home folder."""
        return "/root" if user == "root" else f"/home/{user}"

    def introduce(self, hostname: str, hosts: Sequence[str]) -> None:
        """Take a name, and the names of others, as lines of /etc/hosts that replace earlier ones."""
        self.memory = replace(self.memory, hostname=hostname)
        self.files.write("/etc/hostname", f"{hostname}\n".encode())
        before = self.files.read("/etc/hosts").decode().splitlines() if self.files.entry("/etc/hosts") else []
        lines = [line for line in before if not line.endswith("# vmfest")] + list(hosts)
        self.files.write("/etc/hosts", "".join(f"{line}\n" for line in lines).encode())

    def write(self, path: str, data: bytes, *, append: bool) -> None:
        """Write to a file or to the serial port."""
        if path == "/dev/ttyS0":
            self.console += data.decode(errors="replace")
        elif path != "/dev/null":
            self.files.write(path, data, append=append)

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
        self.snapshots[name] = Kept(self.state, self.memory, self.files.copy())

    def revert(self, kept: Kept) -> None:
        """Be as the snapshot is."""
        self.files = kept.files.copy()
        self.memory = kept.memory
        if kept.state in ON:
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
    if (user := spec.image.login.username) != "root":
        files.make_folder(f"/home/{user}")
    files.write("/dev/null", b"")
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
