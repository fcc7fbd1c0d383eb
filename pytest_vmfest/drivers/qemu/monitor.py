"""QEMU's monitor (QMP): a blocking face over ``qemu.qmp``, which is built on asyncio.

One thread runs the event loop for all monitors of a driver. Every error of ``qemu.qmp`` is translated here,
in `translated`, and nowhere else.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import struct
import threading
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_vmfest.errors import DriverError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    from qemu.qmp import QMPClient

    from pytest_vmfest.waiting import Deadline

T = TypeVar("T")

ANSWER_TIMEOUT_S = 30.0
"""How long an idle QEMU on an overloaded host may take to answer."""

_CLOSE_TIMEOUT_S = 5.0


class MonitorLostError(DriverError):
    """The connection to the monitor broke or never stood; mostly QEMU has ended."""


class MonitorLoop:
    """The thread that all monitors of a driver share. It starts with the first one, and ends with `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._clients: set[QMPClient] = set()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """The coroutine's result; ``TimeoutError`` when it takes longer, and then it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop())
        try:
            return future.result(timeout_s)
        except CancelledError:
            raise ConnectionError("the monitor was closed") from None
        finally:
            future.cancel()

    def close(self) -> None:
        """End the thread. Monitors that are still open are cut off."""
        with self._lock:
            if self._thread is not None:
                loop, ending = self._started.result()
                loop.call_soon_threadsafe(ending.set)
                self._thread.join()
                atexit.unregister(self.close)
            self._thread = None
            self._started = Future()

    async def connect(self, client: QMPClient, connection: socket.socket) -> None:
        """Connect a client, which is hung up on at the latest when the thread ends."""
        await client.connect(connection)
        self._clients.add(client)

    async def disconnect(self, client: QMPClient) -> None:
        """Hang up."""
        self._clients.discard(client)
        await _hang_up(client)

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="vmfest-qmp", daemon=True)
                self._thread.start()
                # A process that ends without closing its driver should not complain of asyncio's tasks.
                atexit.register(self.close)
            return self._started.result()[0]

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        ending = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), ending))
        await ending.wait()
        await asyncio.gather(*map(_hang_up, list(self._clients)))


class Monitor:
    """One connection to a machine's monitor."""

    def __init__(self, loop: MonitorLoop, client: QMPClient, machine: str) -> None:
        self._loop = loop
        self._client = client
        self._moments: dict[str, float] = {}
        self.machine = machine

        def note(event: Mapping[str, Any]) -> bool:
            said = event["timestamp"]
            self._moments[event["event"]] = said["seconds"] + said["microseconds"] / 1e6
            return False  # the client would collect it for a reader that does not exist

        client.events.event_filter = note

    @classmethod
    def connect(
        cls, loop: MonitorLoop, connection: socket.socket, machine: str, deadline: Deadline
    ) -> Monitor:
        """Shake hands over ``connection``, which belongs to the monitor from now on.

        Raises `MonitorLostError` if QEMU hangs up, `WaitTimeoutError` if it does not answer.
        """
        from qemu.qmp import QMPClient

        # Its errors reach the user translated; nobody needs them in the log of a test as well.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        client = QMPClient(machine)
        monitor = cls(loop, client, machine)
        connection.setblocking(False)
        try:
            loop.run(loop.connect(client, connection), deadline.timeout())
        except Exception as error:
            connection.close()
            raise translated(error, machine, "the handshake") from error
        return monitor

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Any:
        """What QEMU answers to the QMP command.

        Raises `DriverError` with QEMU's own words if it refuses, `MonitorLostError`, `WaitTimeoutError`.
        """
        try:
            return self._loop.run(self._client.execute(command, arguments), timeout_s)
        except Exception as error:
            raise translated(error, self.machine, command) from error

    def halt(self) -> None:
        """Halt the virtual CPU; see `halted`."""
        self.execute("stop")

    @property
    def halted(self) -> float:
        """When the virtual CPU was last halted, by QEMU's own clock; now, if this line has not heard of it.

        Our own clock, around a command, is wrong by what that takes: more than a guest's clock may be.
        """
        return self._moments.get("STOP") or time.time()

    def go_on(self) -> float:
        """Let the virtual CPU go on; the time at which it did, by QEMU's own clock."""
        self._moments.pop("RESUME", None)
        self.execute("cont")
        return self._moments.get("RESUME") or time.time()

    def human(self, command: str) -> str:
        """What the human monitor prints for ``command``; some things only it can do."""
        answer: str = self.execute("human-monitor-command", {"command-line": command})
        return answer

    def close(self) -> None:
        """Hang up; allowed more than once, and when QEMU has ended."""
        with suppress(TimeoutError, ConnectionError):
            self._loop.run(self._loop.disconnect(self._client), _CLOSE_TIMEOUT_S)


def connect_beside(folder: Path, name: str, timeout_s: float) -> socket.socket:
    """A connection to the Unix socket ``name`` in ``folder``, however long the folder's path is.

    Raises `MonitorLostError` when nobody listens there.
    """
    # A socket's path ends at 107 characters (unix(7)); through the folder's descriptor it is short.
    connection = socket.socket(socket.AF_UNIX)
    try:
        # Not settimeout(): a non-blocking connect fails at once when two others are waiting already.
        seconds, fraction = divmod(timeout_s, 1)
        wait = struct.pack("ll", int(seconds), int(fraction * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            connection.connect(f"/proc/self/fd/{handle}/{name}")
        finally:
            os.close(handle)
    except OSError as error:
        connection.close()
        raise MonitorLostError(f"nobody answers on {folder / name}: {error}") from error
    return connection


async def _hang_up(client: QMPClient) -> None:
    # Whatever broke the connection is raised here once more, when it no longer matters.
    with suppress(Exception):
        await client.disconnect()


def translated(error: Exception, machine: str, command: str) -> DriverError | WaitTimeoutError:
    """The error of ours for one of ``qemu.qmp``, asyncio or the socket."""
    from qemu.qmp import ExecuteError
    from qemu.qmp.protocol import ConnectError

    if isinstance(error, ExecuteError):
        return DriverError(f"machine {machine!r}: QEMU refused {command}: {error}")
    if isinstance(error, TimeoutError):
        return WaitTimeoutError(f"machine {machine!r}: QEMU did not answer {command} in time")
    cause = error.exc if isinstance(error, ConnectError) else error
    detail = str(cause) or type(cause).__name__
    return MonitorLostError(f"machine {machine!r}: lost QEMU during {command}: {detail}")
