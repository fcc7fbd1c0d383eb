"""Connecting to a guest, and the connection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_vmfest.errors import WaitTimeoutError
from pytest_vmfest.remote import Remote
from pytest_vmfest.ssh.banner import await_banner
from pytest_vmfest.ssh.execute import Commands
from pytest_vmfest.ssh.login import Credentials, log_in
from pytest_vmfest.ssh.transfer import Files
from pytest_vmfest.ssh.trouble import DroppedError
from pytest_vmfest.ssh.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_vmfest.remote import Completed
    from pytest_vmfest.specs import Endpoint, Login
    from pytest_vmfest.ssh.protocol import GuestTransport
    from pytest_vmfest.waiting import Deadline

_PAUSE_S = 0.2


def connect(
    endpoint: Endpoint,
    login: Login,
    deadline: Deadline,
    *,
    watch: Callable[[], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> SshRemote:
    """Wait until SSH answers at ``endpoint`` and log in; see `pytest_vmfest.ssh.connect`."""
    credentials = Credentials.load(login)
    reached: list[str] = []

    def report(stage: str) -> None:
        if stage not in reached:
            reached.append(stage)
            if on_stage is not None:
                on_stage(stage)

    report("port")
    dropped = ""
    while True:
        try:
            sock, received = await_banner(
                endpoint, deadline, watch=watch, on_connect=lambda: report("banner")
            )
            report("login")
            wire = Wire(sock, received)
            transport = log_in(wire, endpoint, credentials, deadline, watch)
        except DroppedError as error:
            dropped = str(error)
            time.sleep(min(_PAUSE_S, deadline.remaining_s))
        except WaitTimeoutError:
            if not dropped:
                raise
            raise WaitTimeoutError(
                f"{endpoint}: SSH answers, but the login as {login.username} was cut off each time within "
                f"{deadline.timeout_s:g} s (last: {dropped})"
            ) from None
        else:
            return SshRemote(transport, wire, f"{login.username}@{endpoint}")


class SshRemote(Remote):
    """An SSH connection into a guest, made by `connect`."""

    def __init__(self, transport: GuestTransport, wire: Wire, where: str) -> None:
        """Take over an authenticated transport; ``where`` ("root@127.0.0.1:22") stands in messages."""
        self._transport = transport
        self._wire = wire
        self._where = where
        self._commands = Commands(transport, wire, where)
        self._files = Files(transport, wire, where)

    def __repr__(self) -> str:
        """Whither, and whether it stands."""
        return f"<SshRemote {self._where}{'' if self.alive else ' (closed)'}>"

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as is known without asking the guest."""
        return self._transport.is_active()

    def execute(self, script: str, *, input: bytes | None, deadline: Deadline) -> Completed:
        """Run ``script`` by the login user's shell, without a terminal.

        Both streams are read together, while ``input`` is written to its standard input, which is closed
        after it, or at once when it is None. A command ends when its streams have, as with ``ssh``: a process
        that it leaves behind has to let go of them.

        Raises `CommandTimeoutError` with the output so far; the connection stays usable. The command is
        killed then if the guest's sshd does that (OpenSSH does, but not for root); otherwise it goes on until
        it writes to its output, which is closed. Also raises `ConnectionLostError`, and `RemoteError` when
        the guest runs no commands, or no more at once. ``exit_status`` is 128 + N after signal N, and 128
        when SSH has no name for the signal.
        """
        return self._commands.run(script, input, deadline)

    def put(self, local: Path, remote: str, deadline: Deadline) -> None:
        """Copy a file or a folder into the guest, as ``cp -r`` does.

        If ``remote`` is a folder, or ends in ``/``, the copy goes into it under its own name; otherwise it
        becomes ``remote``, and replaces a file of that name. Missing folders above it are made. Inside a
        folder, symbolic links are copied as links, and what the guest has there besides stays. Permission
        bits are kept, owner and times are not. Devices, sockets and named pipes are refused.

        Raises `TransferError` naming both paths and the reason, also when ``deadline`` passes, and
        `ConnectionLostError`. What was copied until then stays.
        """
        self._files.put(local, remote, deadline)

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file or a folder from the guest: `put` the other way round, with the same rules.

        Links inside a folder may point anywhere, but nothing is written through them.
        """
        self._files.get(remote, local, deadline)

    def read_bytes(self, remote: str, deadline: Deadline) -> bytes:
        """The content of a file. Raises as `put` does."""
        return self._files.read_bytes(remote, deadline)

    def write_bytes(self, remote: str, data: bytes, deadline: Deadline) -> None:
        """Create or replace a file, and missing folders above it; a file there keeps its mode.

        Raises as `put` does.
        """
        self._files.write_bytes(remote, data, deadline)

    def close(self) -> None:
        """Close the connection; commands still under way in other threads fail. Allowed more than once."""
        self._files.close()
        self._transport.shut()
