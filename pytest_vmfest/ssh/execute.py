"""Running one command in the guest."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from pytest_vmfest.errors import CommandTimeoutError, ConnectionLostError, RemoteError
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, Completed
from pytest_vmfest.ssh.background import Call, OutOfTimeError
from pytest_vmfest.ssh.protocol import open_channel
from pytest_vmfest.ssh.trouble import lost, translated

if TYPE_CHECKING:
    from paramiko import Channel

    from pytest_vmfest.ssh.protocol import GuestTransport
    from pytest_vmfest.ssh.wire import Wire
    from pytest_vmfest.waiting import Deadline

_READ_BYTES = 1 << 20
_WRITE_BYTES = 1 << 15
# sshd allows ten sessions on a connection (MaxSessions), and refuses more; one is for files.
_MOST_COMMANDS = 9
# An SSH packet may have 256 KiB (OpenSSH's PACKET_MAX_SIZE); a longer one ends the whole connection.
_SCRIPT_BYTES = 250_000
_SHOWN_CHARACTERS = 2000


class Commands:
    """The commands on one connection."""

    def __init__(self, transport: GuestTransport, wire: Wire, where: str) -> None:
        """``where`` ("root@127.0.0.1:22") stands in messages."""
        self._transport = transport
        self._wire = wire
        self._where = where
        self._places = threading.BoundedSemaphore(_MOST_COMMANDS)

    def run(self, script: str, input: bytes | None, deadline: Deadline) -> Completed:
        """Run ``script`` by the login user's shell; `SshRemote.execute` says the rest."""
        what = f"{self._where}: {_shown(script)}"
        command = _encoded(script, what)
        output = _Output()
        try:
            with self._wire.busy(deadline), translated(self._transport, what):
                status = self._run(command, input, output, deadline)
        except OutOfTimeError:
            raise _timed_out(what, script, output, deadline) from None
        except ConnectionLostError:
            if deadline.expired:
                raise _timed_out(what, script, output, deadline) from None
            raise
        if status is None:
            raise lost(what, more=output.tail())
        return Completed(status, bytes(output.stdout), bytes(output.stderr))

    def _run(self, command: bytes, input: bytes | None, output: _Output, deadline: Deadline) -> int | None:
        def begin(channel: Channel) -> None:
            output.attach(channel)
            channel.exec_command(command)

        if not self._places.acquire(timeout=deadline.timeout()):
            raise OutOfTimeError
        channel = open_channel(
            self._transport, begin, deadline, unused=self._places.release, discard=self._discard
        )
        try:
            _feed(channel, input)
            return output.collect(channel, deadline)
        finally:
            self._discard(channel)

    def _discard(self, channel: Channel) -> None:
        """Have done with a command, also with one that goes on: nobody waits for it any more."""
        # Both raise when the connection broke; that is known from elsewhere then.
        with contextlib.suppress(Exception):
            if not channel.exit_status_ready():
                self._transport.kill(channel)
            channel.close()
        self._places.release()


class _Wake(threading.Event):
    """Set whenever something came. The library clears it when one of the two streams is drained."""

    def clear(self) -> None:
        """Do nothing: the other stream may have data."""

    def reset(self) -> None:
        """Clear it really."""
        super().clear()


class _Output:
    """Both output streams of a command, read as they come: they share one window, so neither may wait."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.begun = False
        self.status: int | None = None
        self._wake = _Wake()

    def attach(self, channel: Channel) -> None:
        """Be told of all that comes on ``channel``."""
        channel.in_buffer.set_event(self._wake)
        channel.in_stderr_buffer.set_event(self._wake)

    def collect(self, channel: Channel, deadline: Deadline) -> int | None:
        """Read until the command has ended; its exit status, None if the guest told none.

        Raises `OutOfTimeError`.
        """
        self.begun = True
        while True:
            self._wake.reset()
            ended = channel.eof_received or channel.closed
            if self._read(channel):
                if deadline.expired:
                    raise OutOfTimeError
            elif ended:
                break
            elif not self._wake.wait(deadline.timeout()):
                self.status = _status(channel)
                raise OutOfTimeError
        if not channel.status_event.wait(deadline.timeout()):
            raise OutOfTimeError
        return _status(channel)

    def _read(self, channel: Channel) -> bool:
        """Take what has come; whether there was anything."""
        came = False
        if channel.recv_ready():
            self.stdout += channel.recv(_READ_BYTES)
            came = True
        if channel.recv_stderr_ready():
            self.stderr += channel.recv_stderr(_READ_BYTES)
            came = True
        return came

    def tail(self) -> str:
        """The last of what the command wrote, for a message."""
        said = "".join(
            f"\n  {name}: …{_decoded(data[-_SHOWN_CHARACTERS:])}"
            for name, data in (("stdout", self.stdout), ("stderr", self.stderr))
            if data
        )
        return said or "\n  (it had written nothing)"


def _feed(channel: Channel, data: bytes | None) -> None:
    """Write ``data`` to the command's input in the background, and close the input after it."""
    if not data:
        channel.shutdown_write()
        return

    def feed() -> None:
        at = 0
        while at < len(data):
            sent = channel.send(data[at : at + _WRITE_BYTES])
            if not sent:
                return  # the command has ended without reading all
            at += sent
        channel.shutdown_write()

    Call(feed)


def _status(channel: Channel) -> int | None:
    return None if channel.exit_status == -1 else channel.exit_status


def _timed_out(what: str, script: str, output: _Output, deadline: Deadline) -> CommandTimeoutError:
    timeout_s = deadline.timeout_s or 0.0
    message = f"{what}: not finished within {timeout_s:g} s"
    if not output.begun:
        message += "\n  the guest did not even begin with it"
    elif output.status is not None:
        message += (
            f"\n  the command itself has ended with status {output.status}, but a process that it left "
            "behind still holds its output: redirect that process's output"
        )
    return CommandTimeoutError(
        message,
        command=script,
        timeout_s=timeout_s,
        stdout=_decoded(output.stdout),
        stderr=_decoded(output.stderr),
    )


def _encoded(script: str, what: str) -> bytes:
    """``script`` as it is sent; a server hangs up on one that is too long or has a NUL in it."""
    command = script.encode(ENCODING, ENCODING_ERRORS)
    if b"\0" in command:
        raise RemoteError(f"{what}: a command cannot have a NUL character in it")
    if len(command) > _SCRIPT_BYTES:
        raise RemoteError(
            f"{what}: a command of {len(command)} bytes is too long",
            hint="put it into a file in the guest and run that, or give it to 'sh' as input",
        )
    return command


def _decoded(data: bytes | bytearray) -> str:
    return data.decode(ENCODING, ENCODING_ERRORS)


def _shown(script: str) -> str:
    return repr(script if len(script) <= 200 else f"{script[:200]}…")
