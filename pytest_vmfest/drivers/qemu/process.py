"""QEMU's process: starting it, knowing it again, ending it.

A machine may be operated by another process than the one that started it, so a process is known by a pid
and its start time, never by a handle of ``subprocess``. Signals go through a pidfd (Linux 5.3): a pid that
meanwhile belongs to somebody else is never signalled, nor waited for.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_vmfest.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# How the executables of all QEMU's system emulators begin.
_PROGRAM = "qemu-system-"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
        with self._opened() as pidfd:
            return pidfd is not None and not _ended(pidfd, timeout_s=0)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has ended; False if it still runs after ``timeout_s`` seconds (None: no limit)."""
        with self._opened() as pidfd:
            return pidfd is None or _ended(pidfd, timeout_s)

    def kill(self, timeout_s: float) -> bool:
        """End it by SIGKILL and wait; False if it has not ended after ``timeout_s`` seconds."""
        with self._opened() as pidfd:
            if pidfd is None:
                return True
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return _ended(pidfd, timeout_s)

    @contextmanager
    def _opened(self) -> Iterator[int | None]:
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


def spawn(command: Sequence[str], folder: Path, *, fds: Sequence[int], log: IO[bytes]) -> Process:
    """Start ``command`` in ``folder``, in a session of its own, inheriting ``fds``; it may outlive us.

    ``log`` takes what it prints. Raises `DriverError` if the program cannot be run.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            # Ctrl-C in the terminal is for the test run, which ends its machines in order.
            start_new_session=True,
        )
    except OSError as error:
        raise DriverError(f"cannot run {command[0]}: {error.strerror}") from error
    # Popen warns about children that outlive it. Ours may, and `Process` waits for them.
    process.returncode = 0
    return Process.of(process.pid)


def running_in(folder: Path) -> list[Process]:
    """The QEMU processes whose working folder is ``folder``: for a machine whose record tells of none.

    Others, such as somebody's shell, may stand there too; they are no machines.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.cwd() == str(folder) and Path(process.exe()).name.startswith(_PROGRAM):
                found.append(Process.of(process.pid))
    return found


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
