"""QEMU's process: starting it, and finding it again by its folder."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pytest_vmfest.errors import DriverError
from pytest_vmfest.processes import Process

if TYPE_CHECKING:
    from collections.abc import Sequence

# How the executables of all QEMU's system emulators begin.
_PROGRAM = "qemu-system-"


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
