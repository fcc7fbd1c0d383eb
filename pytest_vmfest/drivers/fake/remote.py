"""A connection into a fake guest."""

from __future__ import annotations

import posixpath
import time
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.fake.shell import Shell, Streams
from pytest_vmfest.errors import CommandTimeoutError, ConnectionLostError, TransferError, WaitTimeoutError
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, Completed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_vmfest.drivers.fake.files import FakeFiles
    from pytest_vmfest.drivers.fake.machine import FakeMachine
    from pytest_vmfest.specs import Login
    from pytest_vmfest.waiting import Deadline

_TICK_S = 0.005


class FakeRemote:
    """A `Remote` that needs no network. It breaks as a real one does: reboot, power cut, revert."""

    def __init__(self, machine: FakeMachine, login: Login) -> None:
        """Connect as ``login``, whatever its keys and passwords are."""
        self._machine = machine
        self._login = login
        self._era = machine.connection_era
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the guest is still the one that was connected to, in the same boot."""
        return not self._closed and self._machine.connection_era == self._era

    def execute(self, script: str, *, input: bytes | None, deadline: Deadline) -> Completed:
        """Run ``script`` in the fake shell."""
        streams = Streams(BytesIO(input or b""))
        wait = partial(self._wait, script, deadline)
        try:
            wait(0)  # as long as the machine is paused
            status = Shell(self._machine, self._login, wait, self._login.username).run(script, streams)
            wait(0)
        except WaitTimeoutError as error:
            stdout, stderr = (
                stream.getvalue().decode(ENCODING, ENCODING_ERRORS)
                for stream in (streams.stdout, streams.stderr)
            )
            limit = deadline.timeout_s or 0.0
            raise CommandTimeoutError(
                str(error), command=script, timeout_s=limit, stdout=stdout, stderr=stderr
            ) from None
        return Completed(status, streams.stdout.getvalue(), streams.stderr.getvalue())

    def put(self, local: Path, remote: str, deadline: Deadline) -> None:
        """Copy a file or folder to the guest; into ``remote`` if that is a folder."""
        with self._transfer(f"put {local} to {remote}", deadline) as files:
            target = self._path(remote)
            if files.is_folder(target):
                target = posixpath.join(target, local.name)
            files.make_folder(posixpath.dirname(target), parents=True)
            files.put(local, target)

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file or folder from the guest; into ``local`` if that is a folder."""
        with self._transfer(f"get {remote} to {local}", deadline) as files:
            source = files.resolve(self._path(remote))
            if local.is_dir():
                local /= posixpath.basename(source)
            else:
                local.parent.mkdir(parents=True, exist_ok=True)
            files.get(source, local)

    def read_bytes(self, remote: str, deadline: Deadline) -> bytes:
        """The content of a file."""
        with self._transfer(f"read {remote}", deadline) as files:
            return files.read(self._path(remote))

    def write_bytes(self, remote: str, data: bytes, deadline: Deadline) -> None:
        """Create or replace a file, and the folders above it."""
        with self._transfer(f"write {len(data)} bytes to {remote}", deadline) as files:
            files.make_folder(posixpath.dirname(self._path(remote)), parents=True)
            files.write(self._path(remote), data)

    def close(self) -> None:
        """Close the connection; allowed more than once."""
        self._closed = True

    def _path(self, remote: str) -> str:
        return posixpath.join(self._machine.home(self._login.username), remote)

    @contextmanager
    def _transfer(self, what: str, deadline: Deadline) -> Iterator[FakeFiles]:
        try:
            self._wait(what, deadline, 0)
            yield self._machine.files
        except WaitTimeoutError as error:
            raise TransferError(str(error)) from None
        except OSError as error:
            raise TransferError(f"{what}: {error}") from error

    def _wait(self, what: str, deadline: Deadline, seconds: float) -> None:
        """Let real time pass, and the machine be paused."""
        end = time.monotonic() + seconds
        machine = self._machine
        while self.alive and (time.monotonic() < end or machine.state is MachineState.PAUSED):
            if deadline.expired:
                raise WaitTimeoutError(f"{what!r} did not end within {deadline.timeout_s or 0:g} s")
            time.sleep(_TICK_S)
        if not self.alive:
            running = machine.state is MachineState.RUNNING
            state = "not the same any more" if running else machine.state.value
            raise ConnectionLostError(f"{what}: connection lost, machine {machine.spec.name!r} is {state}")
