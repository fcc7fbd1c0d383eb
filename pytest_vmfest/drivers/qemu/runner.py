"""Machines while they run: starting QEMU, talking to it, telling how it ended."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.qemu import frozen, nat, record
from pytest_vmfest.drivers.qemu.command import Wiring, command_line
from pytest_vmfest.drivers.qemu.host import SYSTEM_PROGRAM
from pytest_vmfest.drivers.qemu.monitor import (
    ANSWER_TIMEOUT_S,
    Monitor,
    MonitorLoop,
    MonitorLostError,
    connect_beside,
)
from pytest_vmfest.drivers.qemu.process import running_in, spawn
from pytest_vmfest.errors import DriverError, ThawError, WaitTimeoutError
from pytest_vmfest.folders import writing_to
from pytest_vmfest.processes import beyond_standard
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_vmfest.drivers.qemu.aio import Aio
    from pytest_vmfest.drivers.qemu.networks import Networks
    from pytest_vmfest.drivers.qemu.record import Record, Store
    from pytest_vmfest.processes import Process

# A QEMU that does not answer this soon is stuck: it counts as running, and is killed when it should quit.
_STATUS_TIMEOUT_S = 2.0
_QUIT_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0
# Between QEMU's hanging up and its end.
_EXIT_TIMEOUT_S = 0.5

_KILLED_BY_SIGNAL = "terminating on signal"


@dataclass(frozen=True)
class Launch:
    """How to start QEMU: program, accelerator, disk access, CPU model, EFI code, a snapshot, a window."""

    program: str
    accel: Literal["kvm", "tcg"]
    aio: Aio
    cpu: str | None = None
    firmware: Path | None = None
    load: str | None = None
    halted: bool = False
    gui: bool = False


class Runner:
    """Starts QEMU for machines of a store, and operates those that run, whoever started them."""

    def __init__(self, store: Store, networks: Networks) -> None:
        self._store = store
        self._networks = networks
        self._loop = MonitorLoop()
        # Our lines to machines that we started, which stay open; others are called when needed.
        self._own: dict[str, tuple[Process, Monitor]] = {}

    def close(self) -> None:
        """Hang up everywhere. The machines go on."""
        for name in list(self._own):
            self.forget(name)
        self._loop.close()

    def launch(self, machine: Record, launch: Launch, deadline: Deadline) -> Record:
        """Start the machine and return its new record, saved already.

        Raises `DriverError` with QEMU's own words when it does not start, and then no process is left.
        """
        name = machine.spec.name
        if machine.was_on:  # it can be frozen only while its memory is the file that was meant for that
            machine = replace(machine, spec=replace(machine.spec, freeze_to=None))
        self.forget(name)  # the line to the process that ran before
        # Whoever finds this record after we were killed looks for a process that it does not tell of.
        self._store.save(replace(machine, starting=True))
        process = None
        try:
            process, line = self._spawn(machine, launch)
            self._store.save(replace(machine, process=process))
            monitor = self._handshake(name, line, deadline)
            self._own[name] = (process, monitor)
            port = nat.forwards(monitor)[nat.SSH_PORT]
            running = replace(machine, process=process, ssh_port=port, saved=False, was_on=True, late_s=0.0)
            source = _goes_on_from(machine)
            if source is not None:
                self._load(monitor, source, deadline)
            # Before the guest writes to its disk, on which memory from before must not be loaded then.
            self._store.save(running)
            machine = replace(machine, was_on=True)
            if source is not None:
                resumed = monitor.go_on()
                running = replace(running, late_s=resumed - (machine.stopped or resumed))
                self._store.save(running)
            return running
        except BaseException:
            # An interrupt may come between the start of a process and our learning of it.
            for left in [process] if process else running_in(self._store.folder(name).resolve()):
                left.kill(_KILL_TIMEOUT_S)
            self.forget(name)
            self._store.save(machine.off(saved=machine.saved))
            raise

    def state(self, machine: Record) -> MachineState:
        """The machine's state now."""
        process = machine.process
        if process is None:
            return MachineState.SAVED if machine.saved else MachineState.POWERED_OFF
        if not process.alive:
            return self._how_ended(machine)
        try:
            with self.monitor(machine, timeout_s=_STATUS_TIMEOUT_S) as monitor:
                status = monitor.execute("query-status", timeout_s=_STATUS_TIMEOUT_S)
        except MonitorLostError:
            # It is about to end, or another process starts it just now.
            return self._how_ended(machine) if process.wait(_EXIT_TIMEOUT_S) else MachineState.RUNNING
        except WaitTimeoutError:
            return MachineState.RUNNING
        return MachineState.RUNNING if status["running"] else MachineState.PAUSED

    @contextmanager
    def monitor(self, machine: Record, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[Monitor]:
        """A line to the machine's QEMU.

        Raises `MonitorLostError`, and `WaitTimeoutError` when another process holds the line too long.
        """
        name = machine.spec.name
        process, monitor = self._own.get(name, (None, None))
        if monitor is not None and process == machine.process:
            yield monitor
            return
        line = connect_beside(self._store.folder(name), record.CONTROL, timeout_s)
        monitor = Monitor.connect(self._loop, line, name, Deadline(timeout_s))
        try:
            yield monitor
        finally:
            monitor.close()

    def quit(self, machine: Record) -> None:
        """Cut the power: QEMU writes out what the guest had written, and ends. If it is stuck, kill it."""
        process = machine.process
        if process is None:
            return
        try:
            with self.monitor(machine, timeout_s=_STATUS_TIMEOUT_S) as monitor:
                monitor.execute("quit", timeout_s=_QUIT_TIMEOUT_S)
            process.wait(_QUIT_TIMEOUT_S)
        except MonitorLostError:
            process.wait(_EXIT_TIMEOUT_S)
        except WaitTimeoutError:
            pass
        self.kill(machine)

    def kill(self, machine: Record) -> None:
        """End QEMU without asking it."""
        process = machine.process
        if process is not None and not process.kill(_KILL_TIMEOUT_S):
            raise DriverError(
                f"machine {machine.spec.name!r}: QEMU (process {process.pid}) does not end, not even killed"
            )
        self.forget(machine.spec.name)

    def forget(self, name: str) -> None:
        """Close our line to the machine, if there is one."""
        if name in self._own:
            process, monitor = self._own.pop(name)
            monitor.close()
            # Another process may have ended it; for its parent, which we are, it would stay a zombie.
            process.wait(0)

    def _spawn(self, machine: Record, launch: Launch) -> tuple[Process, socket.socket]:
        folder = self._store.folder(machine.spec.name)
        ours, theirs = socket.socketpair()
        try:
            with ExitStack() as stack:
                theirs = stack.enter_context(beyond_standard(theirs))
                ports = [
                    stack.enter_context(beyond_standard(self._networks.join(nic.network)))
                    for nic in machine.spec.nics
                ]
                wiring = Wiring(theirs.fileno(), tuple(port.fileno() for port in ports))
                command = command_line(
                    machine.spec,
                    program=launch.program,
                    accel=launch.accel,
                    cpu=launch.cpu,
                    aio=launch.aio,
                    wiring=wiring,
                    firmware=launch.firmware,
                    load=launch.load,
                    mac=machine.mac,
                    memory=frozen.memory_of(machine),
                    incoming=_goes_on_from(machine) is not None,
                    halted=launch.halted,
                    gui=launch.gui,
                )
                with writing_to(folder):
                    log = stack.enter_context((folder / record.LOG).open("wb"))
                return spawn(command, folder, fds=wiring.fds, log=log), ours
        except BaseException:
            ours.close()
            raise

    def _handshake(self, name: str, line: socket.socket, deadline: Deadline) -> Monitor:
        try:
            return Monitor.connect(self._loop, line, name, deadline)
        except MonitorLostError as error:
            said = _complaint(record.log_tail(self._store.folder(name))) or "it printed nothing"
            raise DriverError(f"machine {name!r}: QEMU did not start: {said}", hint=_remedy(said)) from error

    def _load(self, monitor: Monitor, source: Path, deadline: Deadline) -> None:
        try:
            frozen.load(monitor, source, deadline)
        except (DriverError, WaitTimeoutError) as error:
            said = _complaint(record.log_tail(self._store.folder(monitor.machine)))
            why = f"{error.message}: {said}" if said else error.message
            raise ThawError(f"machine {monitor.machine!r}: QEMU cannot load {source}: {why}") from error

    def _how_ended(self, machine: Record) -> MachineState:
        # QEMU removes its pid file when it ends in order. It does so after SIGTERM too, but tells of it.
        folder = self._store.folder(machine.spec.name)
        killed = (folder / record.PID_FILE).exists() or _KILLED_BY_SIGNAL in record.log_tail(folder)
        return MachineState.ABORTED if killed else MachineState.POWERED_OFF


def _goes_on_from(machine: Record) -> Path | None:
    """The frozen machine that this one goes on from when it is started now."""
    return None if machine.was_on else machine.spec.thaw_from


def _complaint(printed: str) -> str:
    r"""What QEMU ended with, without what newer versions warn of at every start.

    >>> _complaint("qemu: -mon: warning: '-mon' is deprecated\nqemu: no such machine")
    'qemu: no such machine'
    """
    return "\n".join(line for line in printed.splitlines() if "warning:" not in line) or printed


def _remedy(said: str) -> str:
    """What to do about QEMU's last words, where we know."""
    if "CPU model" in said:
        return f"the model is set by --vm-cpu or VMFEST_CPU; QEMU lists its own: {SYSTEM_PROGRAM} -cpu help"
    return ""
