"""What one process owns of one hypervisor, written down before it exists and crossed out when it is gone.

A ledger is a file of JSON lines in the store's folder ``runs``. The first says who owns, and each further one
is an event. Lines are only ever appended, each by one write, so that a reader finds whole lines; one that a
power cut has torn is left out.

Whether a ledger's owner lives is told by two witnesses: its guardian, which holds a lock on the file, and the
owner's own process. (The lock counts beyond the bounds of containers that share a store; the process does
where the guardian has been killed.)
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.processes import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOLDER = "runs"
_ENDING = ".ledger"
_SHARED = "shared"


class Kind(Enum):
    """What can be owned."""

    MACHINE = "machine"
    NETWORK = "network"


@dataclass(frozen=True)
class Owner:
    """Who owns what a ledger names, and how to get rid of it.

    ``driver`` and ``settings`` are the driver's name and what it was given; each machine bears ``tags``. When
    ``parent`` ends, ``process`` has nothing to do any more: an xdist worker whose controller was killed.
    """

    driver: str
    settings: dict[str, Any]
    tags: dict[str, str]
    process: Process
    parent: Process | None = None


@dataclass
class Entries:
    """What is still owned; of ``machines`` their memory in MiB.

    ``kept`` are those machines that may stay until a time since the epoch.
    """

    machines: dict[str, int] = field(default_factory=dict)
    networks: dict[str, None] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.machines or self.networks)

    def take(self, event: dict[str, Any]) -> None:
        """Follow one event."""
        if "add" in event and event["add"] == Kind.MACHINE.value:
            self.machines[str(event["name"])] = int(event.get("memory_mib", 0))
        elif "add" in event:
            self.networks[str(event["name"])] = None
        elif "gone" in event and event["gone"] == Kind.MACHINE.value:
            self.machines.pop(event["name"], None)
            self.kept.pop(event["name"], None)
        elif "gone" in event:
            self.networks.pop(event["name"], None)
        elif "keep" in event and event["keep"] in self.machines:
            self.kept[event["keep"]] = float(event["until"])


class Ledger:
    """One ledger. Errors in writing are `StoreError`."""

    def __init__(self, path: Path) -> None:
        """The ledger at ``path``, which need not be there any more."""
        self.path = path

    @classmethod
    def begin(cls, home: Path, owner: Owner) -> Ledger:
        """A new one in the store ``home``."""
        words = [owner.tags.get("run", ""), owner.tags.get("worker", ""), owner.driver, secrets.token_hex(4)]
        ledger = cls(home / _FOLDER / ("-".join(_plain(word) for word in words if word) + _ENDING))
        ledger._begin(owner)
        return ledger

    @classmethod
    def shared(cls, home: Path, run: str, driver: str) -> Ledger:
        """The one for what all workers of a run use, which need not be there yet; see `join`."""
        return cls(home / _FOLDER / f"{_plain(run)}-{_SHARED}-{driver}{_ENDING}")

    @classmethod
    def all_shared(cls, home: Path, run: str) -> list[Ledger]:
        """All shared ledgers of a run."""
        return [cls(path) for path in (home / _FOLDER).glob(f"{_plain(run)}-{_SHARED}-*{_ENDING}")]

    @staticmethod
    def forget_shared(home: Path, run: str) -> None:
        """Remove what the workers of a run locked that were about to make something to share."""
        for path in (home / _FOLDER).glob(f"{_plain(run)}-{_SHARED}-*.lock"):
            path.unlink(missing_ok=True)

    def join(self, owner: Owner) -> Owner:
        """Begin it if nobody has yet, under the caller's lock; whose it is, then."""
        found = self.owner()
        if found is None:
            self._begin(owner)
        return found or owner

    def _begin(self, owner: Owner) -> None:
        # With its first line at once: one without an owner may be removed by whoever finds it.
        beside = Ledger(self.path.with_suffix(f".{secrets.token_hex(4)}.new"))
        with writing_to(self.path):
            make_private(self.path.parent)
            os.close(os.open(beside.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            try:
                beside._append(asdict(owner))
                os.link(beside.path, self.path)
            finally:
                beside.path.unlink()

    @classmethod
    def all(cls, home: Path) -> list[Ledger]:
        """All ledgers of a store."""
        return [cls(path) for path in sorted((home / _FOLDER).glob(f"*{_ENDING}")) if path.is_file()]

    @property
    def log(self) -> Path:
        """Where its guardian tells of trouble."""
        return self.path.with_suffix(".log")

    @property
    def lock_file(self) -> Path:
        """What workers lock that are about to make something to share."""
        return self.path.with_suffix(".lock")

    # --- what its owner writes ---------------------------------------------------------------------

    def add(self, kind: Kind, name: str, memory_mib: int = 0) -> None:
        """Write down what is about to be made. When this returns, a power cut does not lose it."""
        self._append({"add": kind.value, "name": name, "memory_mib": memory_mib})

    def cross_out(self, kind: Kind, name: str) -> None:
        """Write down that it is gone, or nobody's any more."""
        self._append({"gone": kind.value, "name": name})

    def keep(self, machine: str, until: float) -> None:
        """Write down that a machine may stay until a time, in seconds since the epoch."""
        self._append({"keep": machine, "until": until})

    def settle(self) -> None:
        """Write down that its owner has nothing to do with it any more, though it may live on."""
        self._append({"settled": True})

    def guarded_by(self, guardian: Process) -> None:
        """Write down who watches."""
        self._append({"guardian": asdict(guardian)})

    def share(self, key: str, what: dict[str, Any]) -> None:
        """Write down what other workers need to know to use the same machines."""
        self._append({"share": key, "what": what})

    def remove(self) -> None:
        """Remove the file, and those beside it."""
        with writing_to(self.path):
            for path in (self.log, self.lock_file, self.path):
                path.unlink(missing_ok=True)

    def _append(self, event: dict[str, Any]) -> None:
        line = b"\n" + json.dumps(event).encode()  # not appended to a torn line
        with writing_to(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                if os.write(handle, line) < len(line):
                    # A disk takes what it has room for, and refuses the rest only when asked again.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fdatasync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def room(self) -> Iterator[None]:
        """While nobody else makes room for machines in this store."""
        from filelock import FileLock

        path = self.path.parents[1] / "locks" / "room.lock"
        with writing_to(path):
            make_private(path.parent)
        with FileLock(path):
            yield

    # --- what is read ------------------------------------------------------------------------------

    def owner(self) -> Owner | None:
        """Whose it is; None if no line says so, or it is gone. What another version has added is left out."""
        for data in self._lines():
            with suppress(KeyError, TypeError):
                process, parent = data["process"], data.get("parent")
                return Owner(
                    data["driver"],
                    dict(data["settings"]),
                    dict(data["tags"]),
                    _process(process),
                    parent and _process(parent),
                )
        return None

    @property
    def is_settled(self) -> bool:
        """Whether its owner has nothing to do with it any more."""
        return any("settled" in event for event in self._lines())

    def entries(self) -> Entries:
        """What it says that is still there."""
        found = Entries()
        for event in self._lines():
            with suppress(KeyError, TypeError, ValueError):  # not of the shape that we write
                found.take(event)
        return found

    def guardian(self) -> Process | None:
        """Who watched last, and may have ended."""
        found = [event["guardian"] for event in self._lines() if "guardian" in event]
        return Process(**found[-1]) if found else None

    def what_is_shared(self, key: str) -> dict[str, Any] | None:
        """What was written by `share`; None if nobody has."""
        found = [event["what"] for event in self._lines() if event.get("share") == key]
        return found[-1] if found else None

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in data.splitlines():
            with suppress(ValueError):  # empty, or torn by a power cut
                if isinstance(event := json.loads(line), dict):
                    yield event

    # --- whether its owner lives -------------------------------------------------------------------

    def lock(self) -> int | None:
        """Lock the ledger, as long as the descriptor is open; None if another has the lock, or it is gone."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), self.path.stat()):  # else it was removed meanwhile
                return handle
        os.close(handle)
        return None

    @staticmethod
    def unlock(handle: int) -> None:
        """Give a lock back, also if a child that was forked meanwhile has the descriptor too."""
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _plain(word: str) -> str:
    """A word as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]", "_", word)[:40]


def _process(data: dict[str, Any]) -> Process:
    return Process(data["pid"], data["start_ticks"], data["boot"])


class MemoryLedger(Ledger):
    """A ledger of what dies with its owner: nothing has to be written for anybody else."""

    def __init__(self, owner: Owner) -> None:
        """An empty one."""
        super().__init__(Path("memory"))
        self._events: list[dict[str, Any]] = [asdict(owner)]

    def remove(self) -> None:
        """Forget everything."""
        self._events.clear()

    @contextmanager
    def room(self) -> Iterator[None]:
        """There is nobody else."""
        yield

    def _append(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield from self._events
