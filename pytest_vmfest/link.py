"""The link to a guest: connecting while watching that the machine lives, and connecting again later."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pytest_vmfest import ssh
from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import (
    ConnectionLostError,
    ConsoleAlarmError,
    DriverError,
    DriverUnavailableError,
    MachineGoneError,
    MachineNotFoundError,
    VmfestError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_vmfest.instance import Instance
    from pytest_vmfest.remote import Remote
    from pytest_vmfest.waiting import Deadline

# The last that a kernel writes when it panics and does not start anew by itself (kernel/panic.c).
_PANICKED = re.compile(
    r"^(.*Kernel panic - not syncing.*)$(?s:.*)---\[ end Kernel panic[^\n]*\s*\Z", re.MULTILINE
)
BREAKS_OFF = (MachineGoneError, ConsoleAlarmError, DriverUnavailableError)
"""What is found while a command or a transfer runs, and ends it."""

# How often a machine is looked at while a command or a transfer runs.
_GUARD_S = 0.5


class Link:
    """Keeps one `Remote` to a guest, made when it is first needed and made anew after it broke."""

    def __init__(self, instance: Instance) -> None:
        """Know the machine; connects nothing yet."""
        self._instance = instance
        self._remote: Remote | None = None
        self._lock = threading.Lock()
        self.verify: Callable[[Remote, Deadline], None] = lambda remote, deadline: None
        """Called with each new connection before it is used; may raise what then comes of the use."""
        self.watch: Callable[[bool], None] = lambda at_once: None
        """Called while a command or transfer runs, or a connection is waited for; may raise
        `ConsoleAlarmError` to break that off. Told whether to look although it has just looked."""

    def remote(
        self,
        deadline: Deadline,
        *,
        watch: Callable[[], None] | None = None,
        on_stage: Callable[[str], None] | None = None,
        is_new: bool = False,
    ) -> Remote:
        """The connection, made within ``deadline`` if there is none that lives.

        That the machine ``is_new`` at its address saves looking who answers there: nobody else can, so soon.
        Besides the errors of `pytest_vmfest.ssh.connect`: `MachineGoneError` at once when the machine stops
        running or its kernel panics, and whatever ``watch`` raises.
        """
        with self._lock:
            if self._remote is None or not self._remote.alive:
                self._close()
                remote = self._connect(deadline, watch, on_stage)
                try:
                    if not is_new:
                        self.verify(remote, deadline)
                except BaseException:
                    remote.close()
                    raise
                self._remote = remote
            return self._remote

    @contextmanager
    def using(self, deadline: Deadline) -> Iterator[Remote]:
        """The connection, for the time of a command or transfer, while the machine is watched.

        When it stops or panics meanwhile, the connection is closed and `MachineGoneError` says why; likewise
        when `watch` raises, or when the hypervisor's service is gone (`DriverUnavailableError`).
        """
        self.watch(False)
        remote = self.remote(deadline)
        done = threading.Event()
        trouble: list[VmfestError] = []

        def guard() -> None:
            while not done.wait(_GUARD_S):
                try:
                    self._check_alive(paused_too=True)
                    self.watch(False)
                except BREAKS_OFF as error:
                    trouble.append(error)
                    remote.close()
                    return
                except (VmfestError, OSError):
                    # An overloaded hypervisor that does not answer in time says nothing about the guest.
                    continue

        watchman = threading.Thread(target=guard, name="vmfest-guard", daemon=True)
        try:
            watchman.start()
            yield remote
        except ConnectionLostError as error:
            if trouble:
                raise trouble[0] from error
            with suppress(DriverError, OSError):
                self._check_alive(paused_too=True)
            self.watch(True)
            raise
        finally:
            done.set()
            if watchman.ident is not None:
                watchman.join()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection that stands, as far as is known without asking the guest."""
        remote = self._remote
        return remote is not None and remote.alive

    def drop(self) -> None:
        """Close the connection; the next use makes a new one."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def _connect(
        self,
        deadline: Deadline,
        watch: Callable[[], None] | None,
        on_stage: Callable[[str], None] | None,
    ) -> Remote:
        instance = self._instance
        self._check_alive()

        def watch_all() -> None:
            self._check_alive()
            self.watch(False)
            if watch is not None:
                watch()

        if own := instance.driver.remote(instance.name, instance.image.login, deadline, watch=watch_all):
            return own
        if on_stage is not None:
            on_stage("address")
        endpoint = instance.driver.endpoint(instance.name, deadline)
        return ssh.connect(endpoint, instance.image.login, deadline, watch=watch_all, on_stage=on_stage)

    def _check_alive(self, *, paused_too: bool = False) -> None:
        instance = self._instance
        try:
            state = instance.state
            if state is MachineState.PAUSED and (reason := instance.driver.standstill(instance.name)):
                raise MachineGoneError(
                    f"machine {instance.name!r} stands still: {reason}", infrastructure=True
                )
            alive = state is MachineState.RUNNING or (paused_too and state is MachineState.PAUSED)
            if not alive:
                raise MachineGoneError(
                    f"machine {instance.name!r} is {state.value}",
                    infrastructure=state is MachineState.ABORTED,
                )
            console = instance.console_since_start()
        except MachineNotFoundError:
            raise MachineGoneError(f"there is no machine {instance.name!r} any more") from None
        if panic := _PANICKED.search(console):
            raise MachineGoneError(f"the guest's kernel panicked: {panic[1].strip()}")
