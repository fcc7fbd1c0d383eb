"""One pytest in the guest, from its start to its end or to its giving up."""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from tests.lane import parcel
from tests.lane.outcomes import Attempt
from tests.lane.watch import Trouble, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.lane.outcomes import Book
    from tests.lane.place import Place

TEST_S = 900
"""Seconds for one test, that pytest-timeout takes care of in the guest."""
STEP_S = TEST_S + 180.0
"""Seconds for one test before the lane gives the host up."""
SILENCE_S = 150.0
"""Seconds without any sign of life from the guest before it counts as hung."""
_FAREWELL_S = 20.0

ENVIRONMENT = {
    "HOME": "/root",
    "LANE_EVENTS_FD": "3",
    "LANE_KEPT": parcel.KEPT,
    "LANE_LOGINS": f"{parcel.WORK}/logins",
    "LANE_ROOT": parcel.WORK,
    "PATH": f"{parcel.ROOT}/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTEST_PLUGINS": "tests.lane.logins",
    "PYTHONUNBUFFERED": "1",
    "TMPDIR": f"{parcel.WORK}/tmp",
    "VMFEST_BOOT_TIMEOUT": "500",  # two that boot at once have one emulated processor
    "VMFEST_HOME": f"{parcel.WORK}/home",
}


@dataclass
class Seen:
    """What a session showed."""

    trouble: Trouble | None = None
    running: str | None = None
    status: int | None = None
    ssh_addresses: list[str] = field(default_factory=list)
    uncollectable: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Modules that skipped themselves, and why."""


class Session:
    """Runs pytest in a place, and notes in the book what it tells."""

    def __init__(
        self,
        place: Place,
        book: Book,
        suite: str,
        *,
        say: Callable[[str], None],
        keep: Callable[..., None],
        cold: bool = False,
    ) -> None:
        """``say`` gets every line that the guest writes, ``keep`` (test id, attempt, logs) each failure.

        ``cold``: all machines boot, also where they could resume from a template.
        """
        self._place = place
        self._book = book
        self._suite = suite
        self._variables = {**ENVIRONMENT, "VMFEST_COLD": str(int(cold))}
        self._say = say
        self._keep = keep
        self._seen = Seen()
        self._told: queue.Queue[tuple[str, str]] = queue.Queue()

    def run(self, arguments: Sequence[str], is_over: Callable[[], bool]) -> Seen:
        """Run pytest with ``arguments`` until it ends, has to be given up, or there is no time for it."""
        tests = self._place.open(_command(arguments, self._variables))
        pulse = self._place.open(_pulse_command())
        readers: list[threading.Thread] = []
        try:
            for process, first_kind, second_kind in ((tests, "output", "event"), (pulse, "event", "ssh")):
                for stream, kind in ((process.stdout, first_kind), (process.stderr, second_kind)):
                    readers.append(threading.Thread(target=self._read, args=(stream, kind), daemon=True))
                    readers[-1].start()
            self._attend(tests, readers[:2], is_over)
        finally:
            for process in (tests, pulse):
                process.kill()
                process.wait()
            for reader in readers:
                reader.join(_FAREWELL_S)
        return self._seen

    def _read(self, stream: IO[bytes], kind: str) -> None:
        with stream:
            for line in stream:
                self._told.put((kind, line.decode(errors="replace").rstrip("\n")))

    def _attend(
        self, tests: subprocess.Popen[bytes], readers: Sequence[threading.Thread], is_over: Callable[[], bool]
    ) -> None:
        watch = Watch(time.monotonic(), silence_s=SILENCE_S, step_s=STEP_S)
        farewell: float | None = None
        while True:
            try:
                kind, line = self._told.get(timeout=1)
            except queue.Empty:
                kind, line = "", ""
            now = time.monotonic()
            if kind:
                watch.heard(now)
                self._take(kind, line, watch)
                continue
            if self._seen.status is not None:
                farewell = farewell or now
                if tests.poll() is not None or now - farewell > _FAREWELL_S:
                    return
            elif tests.poll() is not None:
                for reader in readers:  # its last words may still be on their way
                    reader.join(_FAREWELL_S)
                if not self._told.empty():
                    continue
                self._seen.trouble = Trouble.DIED if self._place.answers() else Trouble.GONE
                return
            elif is_over():
                self._seen.trouble = Trouble.BUDGET
                return
            elif trouble := watch.trouble(now):
                self._seen.trouble = trouble
                return

    def _take(self, kind: str, line: str, watch: Watch) -> None:
        event = _event(line) if kind == "event" else None
        if event is None:
            if line.strip():
                self._say(f"{kind if kind == 'ssh' else 'guest'}| {line}")
            return
        match event["event"]:
            case "beat":
                for name in sorted(set(event["machines"]) - self._place.machines):
                    self._say(f"VirtualBox machine started: {name}")
                self._place.machines |= set(event["machines"])
            case "collected":
                self._book.collect(self._suite, event["ids"])
                watch.stepped(time.monotonic())
            case "uncollectable":
                self._seen.uncollectable.append(f"{event['id']}\n{event['text']}")
            case "left_out":
                self._seen.left_out[event["id"]] = event["text"]
            case "began":
                self._seen.running = event["id"]
                watch.stepped(time.monotonic())
            case "ended":
                self._ended(event)
                watch.stepped(time.monotonic())
            case "ssh":
                self._say(f"SSH session in there, to {event['address']}")
                self._seen.ssh_addresses.append(event["address"])
            case "finished":
                self._seen.status = event["status"]

    def _ended(self, event: dict[str, Any]) -> None:
        attempt = Attempt(
            event["outcome"], self._place.name, event["duration_s"], event["text"], tuple(event["marks"])
        )
        self._seen.running = None
        self._book.add(event["id"], attempt)
        if attempt.outcome == "failed":
            self._say(f"FAILED {event['id']}; the emulator's marks: {', '.join(attempt.marks) or 'none'}")
            self._keep(event["id"], attempt, event["tails"])


def _command(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """Shell text: pytest's events go to stderr, all that it says to stdout."""
    pytest = [
        *(parcel.PYTHON, "-m", "pytest", "-vv", "--color=no", "-p", "no:cacheprovider", "--tb=short"),
        *("-p", "tests.lane.guest_plugin", f"--timeout={TEST_S}", "--timeout-method=signal", *arguments),
    ]
    words = " ".join(f"{key}={value}" for key, value in variables.items())
    return f"cd {parcel.ROOT}/project && exec env {words} {shlex.join(pytest)} 3>&2 2>&1"


def _pulse_command() -> str:
    return f"cd {parcel.ROOT}/project && exec python3 -m tests.lane.keeper {parcel.WORK} {parcel.KEPT}"


def _event(line: str) -> dict[str, Any] | None:
    """The event in a line, or None for what SSH itself says."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
