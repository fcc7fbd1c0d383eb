"""Processes of this host: knowing one again, ending it, and starting helpers that outlive us.

A process is known by a pid and its start time, never by a handle of ``subprocess``: others than who started
it have to do with it. Signals go through a pidfd (Linux 5.3): a pid that meanwhile belongs to somebody else
is never signalled, nor waited for.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STDERR = 2


@dataclass(frozen=True)
class Process:
    """One very process of this host.

    ``start_ticks`` is its start time in clock ticks since the host booted, and ``boot`` that boot's id.
    (The time since the epoch that ``psutil`` makes of the former moves when the host's clock is set.)
    """

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has ``pid`` now; `ProcessLookupError` if none has."""
        _, start_ticks = _stat(pid)
        return cls(pid, start_ticks, _boot_id())

    @property
    def alive(self) -> bool:
        """Whether it still runs. A child of ours that has ended is waited for by the way: no zombie stays."""
        with self.opened() as pidfd:
            return pidfd is not None and not _ended(pidfd, timeout_s=0)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has ended; False if it still runs after ``timeout_s`` seconds (None: no limit)."""
        with self.opened() as pidfd:
            return pidfd is None or _ended(pidfd, timeout_s)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM; one that has ended already is fine."""
        with self.opened() as pidfd:
            if pidfd is not None:
                _send(pidfd, signal.SIGTERM)

    def kill(self, timeout_s: float) -> bool:
        """End it by SIGKILL and wait; False if it has not ended after ``timeout_s`` seconds."""
        with self.opened() as pidfd:
            if pidfd is None:
                return True
            _send(pidfd, signal.SIGKILL)
            return _ended(pidfd, timeout_s)

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """A pidfd of this very process, also of a zombie; None if there is no such process any more."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            # Compared after opening: from here on, the pidfd stands for the process compared.
            yield pidfd if self._matches() else None
        finally:
            os.close(pidfd)

    def _matches(self) -> bool:
        try:
            return Process.of(self.pid) == self
        except ProcessLookupError:
            return False


def start_helper(
    command: Sequence[str], *, ready: bytes, log: str, timeout_s: float, program: str = ""
) -> Process:
    """Start a process that may outlive us, in a session of its own; returns when it is at work.

    It says so by writing ``ready`` to its standard output. It finds ``program`` on its standard input, and
    what it prints to standard error goes to the file ``log``. Raises `OSError` that says why it does not
    start; then there is no such process.
    """
    reader, writer = _pipe()
    # Not by subprocess, which wants its children waited for.
    with os.fdopen(reader, "rb", buffering=0) as answer:
        try:
            pid = _spawn(command, program, writer, log)
        finally:
            os.close(writer)
        started = False
        try:
            answered, _, _ = select.select([answer], [], [], timeout_s)
            started = bool(answered) and answer.read(len(ready)) == ready
        finally:
            if not started:
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so the pid is still our child's
                os.waitpid(pid, 0)
    if not started:
        said = Path(log).read_text(errors="replace").strip().rpartition("\n")[2]
        raise ChildProcessError(
            said or ("it ended at once" if answered else f"it was not ready in {timeout_s:g} s")
        )
    return Process.of(pid)


def beyond_standard(connection: socket.socket) -> socket.socket:
    """The same connection on a descriptor beyond the standard ones, for a process that inherits it.

    Where ours are closed, the next that are opened get their numbers, which mean something else to a program.
    """
    if connection.fileno() > _STDERR:
        return connection
    with connection:
        return socket.socket(fileno=fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1))


def _spawn(command: Sequence[str], program: str, output: int, log: str) -> int:
    reader, writer = _pipe()
    try:
        try:
            os.write(writer, program.encode())  # fits into the pipe: nobody reads before the process runs
        finally:
            os.close(writer)
        return os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, reader, 0),
                (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            ],
            setsid=True,
        )
    finally:
        os.close(reader)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are beyond the standard descriptors, also where those are closed."""
    low = os.pipe()
    try:
        reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1) for end in low)
    finally:
        for end in low:
            os.close(end)
    return reader, writer


def _send(pidfd: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _ended(pidfd: int, timeout_s: float | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(None if timeout_s is None else timeout_s * 1000):
        return False
    with suppress(ChildProcessError):  # then it is another process's child
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    return True


def _stat(pid: int) -> tuple[str, int]:
    """State and start time of a process: fields 3 and 22 of proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
