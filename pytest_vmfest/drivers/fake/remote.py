"""A connection into a fake guest."""

from __future__ import annotations

import posixpath
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.fake import commands
from pytest_vmfest.drivers.fake.guest import Guest, HungUpError, OutOfTimeError
from pytest_vmfest.drivers.fake.shell import Shell, Streams
from pytest_vmfest.errors import CommandTimeoutError, ConnectionLostError, TransferError
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, Completed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_vmfest.drivers.fake.machine import FakeMachine
    from pytest_vmfest.specs import Login
    from pytest_vmfest.waiting import Deadline


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
        guest = self._guest(script, deadline)
        streams = Streams(input or b"")
        shell = Shell(guest, commands.table(guest), user=self._login.username)
        try:
            guest.sleep(0)  # as long as the machine is paused
            status = shell.run(script, streams)
        except OutOfTimeError:
            stdout, stderr = (
                bytes(stream).decode(ENCODING, ENCODING_ERRORS) for stream in (streams.stdout, streams.stderr)
            )
            limit = deadline.timeout_s or 0.0
            raise CommandTimeoutError(
                f"{script!r} did not end within {limit:g} s",
                command=script,
                timeout_s=limit,
                stdout=stdout,
                stderr=stderr,
            ) from None
        except HungUpError:
            raise self._lost(script) from None
        if not guest.connected:
            raise self._lost(script)
        return Completed(status, bytes(streams.stdout), bytes(streams.stderr))

    def put(self, local: Path, remote: str, deadline: Deadline) -> None:
        """Copy a file or folder to the guest; into ``remote`` if that is a folder."""
        with self._transfer(f"put {local} to {remote}", deadline) as guest:
            target = self._path(remote)
            if guest.files.is_folder(target):
                target = posixpath.join(target, local.name)
            guest.files.make_folder(posixpath.dirname(target), parents=True)
            guest.files.put(local, target)

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file or folder from the guest; into ``local`` if that is a folder."""
        with self._transfer(f"get {remote} to {local}", deadline) as guest:
            source = guest.files.resolve(self._path(remote))
            if local.is_dir():
                local /= posixpath.basename(source)
            else:
                local.parent.mkdir(parents=True, exist_ok=True)
            guest.files.get(source, local)

    def read_bytes(self, remote: str, deadline: Deadline) -> bytes:
        """The content of a file."""
        with self._transfer(f"read {remote}", deadline) as guest:
            return guest.files.read(self._path(remote))

    def write_bytes(self, remote: str, data: bytes, deadline: Deadline) -> None:
        """Create or replace a file, and the folders above it."""
        with self._transfer(f"write {len(data)} bytes to {remote}", deadline) as guest:
            guest.files.make_folder(posixpath.dirname(self._path(remote)), parents=True)
            guest.files.write(self._path(remote), data)

    def close(self) -> None:
        """Close the connection; allowed more than once."""
        self._closed = True

    def _path(self, remote: str) -> str:
        user = self._login.username
        return posixpath.join("/root" if user == "root" else f"/home/{user}", remote)

    def _guest(self, what: str, deadline: Deadline) -> Guest:
        if not self.alive:
            raise self._lost(what)
        return Guest(self._machine, self._login, deadline)

    @contextmanager
    def _transfer(self, what: str, deadline: Deadline) -> Iterator[Guest]:
        guest = self._guest(what, deadline)
        try:
            guest.sleep(0)
            yield guest
        except OutOfTimeError:
            raise TransferError(f"{what}: not done within {deadline.timeout_s or 0:g} s") from None
        except HungUpError:
            raise self._lost(what) from None
        except OSError as error:
            raise TransferError(f"{what}: {error}") from error

    def _lost(self, what: str) -> ConnectionLostError:
        machine = self._machine
        state = machine.state.value if machine.state is not MachineState.RUNNING else "not the same any more"
        return ConnectionLostError(f"{what}: connection lost, machine {machine.spec.name!r} is {state}")
