"""The inside of a fake machine as one command sees it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState

if TYPE_CHECKING:
    from pytest_vmfest.drivers.fake.files import FakeFiles
    from pytest_vmfest.drivers.fake.machine import FakeMachine
    from pytest_vmfest.remote import Completed
    from pytest_vmfest.specs import Login
    from pytest_vmfest.waiting import Deadline

_TICK_S = 0.005


class OutOfTimeError(Exception):
    """The command's deadline passed while it waited."""


class HungUpError(Exception):
    """The machine went away under the command."""


class Guest:
    """The guest for the time of one command, which ends at ``deadline`` or with the connection."""

    def __init__(self, machine: FakeMachine, login: Login, deadline: Deadline) -> None:
        """The inside of ``machine`` for a command of ``login``."""
        self.login = login
        self._machine = machine
        self._deadline = deadline
        self._era = machine.connection_era

    @property
    def files(self) -> FakeFiles:
        """The machine's files."""
        return self._machine.files

    @property
    def connected(self) -> bool:
        """Whether nothing has broken the connection that the command came by."""
        return self._machine.connection_era == self._era

    @property
    def hostname(self) -> str:
        """The name that the kernel has."""
        return self._machine.memory.hostname

    @hostname.setter
    def hostname(self, name: str) -> None:
        self._machine.memory = replace(self._machine.memory, hostname=name)

    def answer(self, command: str, stdin: bytes) -> Completed | None:
        """What the user of the fake wants a command to answer."""
        return self._machine.world.answer(self._machine.spec.name, command, stdin)

    def write_console(self, text: str) -> None:
        """Write to the serial port."""
        self._machine.console += text

    def sleep(self, seconds: float) -> int:
        """Wait in real time, and while the machine is paused."""
        end = time.monotonic() + seconds
        while time.monotonic() < end or self._machine.state is MachineState.PAUSED:
            if not self.connected:
                raise HungUpError
            if self._deadline.expired:
                raise OutOfTimeError
            time.sleep(_TICK_S)
        return 0

    def reboot(self) -> int:
        """Start anew."""
        with self._machine.world.lock:
            self._machine.boot()
        raise HungUpError

    def power_off(self) -> int:
        """Switch off from inside."""
        with self._machine.world.lock:
            self._machine.end(MachineState.POWERED_OFF)
        raise HungUpError
