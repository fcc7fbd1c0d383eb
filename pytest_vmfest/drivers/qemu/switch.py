"""Private networks: starting, joining and ending a userspace Ethernet switch, without root.

One folder is one network; machines join it with QEMU's ``-netdev stream`` on the socket that
`connect_switch` returns (``addr.type=fd``). What the switch does, and how long it lives by itself, is told in
``switch_process.py``.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.qemu import switch_process
from pytest_vmfest.errors import DriverError
from pytest_vmfest.folders import make_private
from pytest_vmfest.processes import start_helper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRACE_S = 5.0
"""How long a switch without creator and ports waits for a machine that is being started again."""

_LOG_NAME = "switch.log"
_START_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 5.0


def spawn_switch(folder: Path, *, python: str = sys.executable) -> None:
    """Have a switch in ``folder``, which is created if need be, and private; returns when it listens.

    A switch that runs there already stays. Otherwise one is started that lives until this process has
    ended and its last port is closed, or until `end_switch`. So whoever starts a machine again later, from
    another process, calls this first. Raises `DriverError` if it does not start.
    """
    try:
        make_private(folder)
        folder.chmod(0o700)
        with _locked(folder) as handle:
            if not _answers(handle):
                _remove_socket(handle)
                _start(folder, handle, python)
    except OSError as error:
        raise DriverError(f"no switch could be started in {folder}: {error}") from error


def connect_switch(folder: Path) -> socket.socket:
    """A new port of the switch in ``folder``: a connected stream socket, to be handed to QEMU.

    The port closes when all copies of the socket are closed. Raises `DriverError` if no switch runs there.

    >>> with connect_switch(folder) as port:  # doctest: +SKIP
    ...     netdev = f"stream,id=lan,server=off,addr.type=fd,addr.str={port.fileno()}"
    ...     subprocess.Popen([qemu, "-netdev", netdev, ...], pass_fds=[port.fileno()])
    """
    try:
        with _opened(folder) as handle:
            return _connect(handle)
    except OSError as error:
        raise DriverError(f"no switch answers in {folder}: {error.strerror}") from error


def end_switch(folder: Path) -> None:
    """End the switch in ``folder`` and wait until it is gone. If there is none, that is fine.

    All its ports close. Raises `DriverError` if it does not end.
    """
    try:
        with _locked(folder) as handle:
            process = _process(handle)
            if process is not None:
                _kill(*process, folder)
            _remove_socket(handle)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DriverError(f"the switch in {folder} could not be ended: {error}") from error


# --- the folder ------------------------------------------------------------------------------------


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder. Through it paths stay short, whatever the folder is called."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, while no other process or thread starts or ends a switch in it."""
    with _opened(folder) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def _remove_socket(handle: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(switch_process.SOCKET_NAME, dir_fd=handle)


def _connect(handle: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(f"/proc/self/fd/{handle}/{switch_process.SOCKET_NAME}")
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def _answers(handle: int) -> bool:
    try:
        _connect(handle).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


# --- the process -----------------------------------------------------------------------------------


def _start(folder: Path, handle: int, python: str) -> None:
    # No site-packages, no environment: it needs neither, and starts so much faster.
    command = [python, "-I", "-S", switch_process.__file__]
    start_helper(
        [*command, str(folder.absolute()), str(os.getpid()), str(GRACE_S)],
        ready=switch_process.READY,
        log=f"/proc/self/fd/{handle}/{_LOG_NAME}",
        timeout_s=_START_TIMEOUT_S,
    )


def _process(handle: int) -> tuple[int, int] | None:
    """Pid and pidfd of the switch that listens in the folder; None if none does.

    The kernel itself tells who listens (SO_PEERCRED), so no pid file can be stale or lie.
    """
    try:
        connection = _connect(handle)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    with connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # A connection that still stands: the listener lived when the pidfd was made, so it is its own.
        if _stands(connection):
            return pid, pidfd
        os.close(pidfd)
        return None


def _stands(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _kill(pid: int, pidfd: int, folder: Path) -> None:
    """End the process. It has nothing to put in order, so it is not asked first."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone, _, _ = select.select([pidfd], [], [], _END_TIMEOUT_S)
        if not gone:
            raise DriverError(f"the switch in {folder} (process {pid}) does not end")
        with suppress(ChildProcessError):  # another process's child, then
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
