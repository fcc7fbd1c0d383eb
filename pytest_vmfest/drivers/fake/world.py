"""All that there is of fake machines: one world for each store, in this process."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, Completed

if TYPE_CHECKING:
    import re
    from io import BytesIO
    from pathlib import Path

    from pytest_vmfest.drivers.fake.machine import FakeMachine


class FakeFault(Enum):
    """What can go wrong with a fake machine; see `FakeDriver.inject`."""

    CREATE_FAILS = "create fails"
    """`Driver.create` raises `DriverError`."""
    START_FAILS = "start fails"
    """`Driver.start` raises `DriverError`; the machine stays powered off."""
    UNREACHABLE = "unreachable"
    """The guest never answers: `Driver.remote` waits until its deadline."""
    DIES = "dies"
    """The machine is aborted while it is being connected to."""
    PANICS = "panics"
    """The guest's kernel panics on the console while it is being connected to, and never answers."""
    IGNORES_STOP = "ignores stop"
    """The guest does not heed the power button."""
    DESTROY_FAILS = "destroy fails"
    """`Driver.destroy` raises `DestroyError`; the machine stays."""


@dataclass(frozen=True)
class FakeCall:
    """A command that a guest was given: on which machine, the match of its pattern, its standard input."""

    machine: str
    command: str
    match: re.Match[str]
    input: bytes


FakeReply = str | int | Completed | Callable[[FakeCall], "str | int | Completed"]


@dataclass
class Responder:
    """A user's answer to commands that match."""

    pattern: re.Pattern[str]
    reply: FakeReply
    machine: str


@dataclass
class _Injection:
    fault: FakeFault
    machine: str
    times: int | None


@dataclass
class World:
    """The machines, networks, answers and faults of one store."""

    machines: dict[str, FakeMachine] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    responders: list[Responder] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    next_port: int = 20000
    _injections: list[_Injection] = field(default_factory=list)

    def inject(self, fault: FakeFault, machine: str, times: int | None) -> None:
        """Let ``fault`` befall the machines whose names match, ``times`` times in all."""
        with self.lock:
            self._injections.append(_Injection(fault, machine, times))

    def heal(self) -> None:
        """Forget all faults."""
        with self.lock:
            self._injections.clear()

    def strikes(self, fault: FakeFault, machine: str) -> bool:
        """Whether the fault befalls the machine now; one with a number of times is used up by this."""
        with self.lock:
            for injection in self._injections:
                if injection.fault is fault and fnmatch.fnmatchcase(machine, injection.machine):
                    if injection.times is None:
                        return True
                    if injection.times > 0:
                        injection.times -= 1
                        return True
        return False

    def answer(self, machine: str, command: str, stdin: BytesIO) -> Completed | None:
        """What the user wants to be answered; the answer that was given last wins."""
        for responder in reversed(self.responders):
            match = responder.pattern.fullmatch(command)
            if match and fnmatch.fnmatchcase(machine, responder.machine):
                reply = responder.reply
                return completed(
                    reply(FakeCall(machine, command, match, stdin.read())) if callable(reply) else reply
                )
        return None

    def free_port(self) -> int:
        """A port number that no other fake machine has; nothing listens there."""
        with self.lock:
            self.next_port += 1
            return self.next_port


# Two drivers with one store see the same machines, as two real ones do.
_worlds: dict[Path, World] = {}
_worlds_lock = threading.Lock()


def world_of(home: Path) -> World:
    """The world that belongs to a store's folder."""
    with _worlds_lock:
        return _worlds.setdefault(home, World())


def completed(reply: object) -> Completed:
    """What a reply means: a status, standard output, or both; anything else is a success in silence."""
    if isinstance(reply, Completed):
        return reply
    if isinstance(reply, str):
        return Completed(0, reply.encode(ENCODING, ENCODING_ERRORS), b"")
    return Completed(reply if isinstance(reply, int) else 0, b"", b"")
