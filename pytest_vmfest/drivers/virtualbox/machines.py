"""VirtualBox's machines: finding ours, their states, locking them, starting and ending their processes."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.base import ON, MachineState
from pytest_vmfest.drivers.refusals import no_machine, still_on
from pytest_vmfest.drivers.virtualbox import console, record, trouble
from pytest_vmfest.errors import (
    ConfigurationError,
    DriverError,
    DriverUnavailableError,
    MachineStateError,
    VmfestError,
    WaitTimeoutError,
)
from pytest_vmfest.specs import check_label
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtualbox.library import IMachine, ISession

    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.drivers.virtualbox.record import Record

QUICK_S = 30.0
"""For what VirtualBox does at once, unless another program has the machine locked."""
_POLL_S = 0.05
# A guest whose power button is not watched yet misses the press.
_PRESS_AGAIN_S = 5.0
_LOG_TAIL_LINES = 8

# What VirtualBox answers to who wants a lock that another has, or a process that just begins or ends.
_LOCKED = (trouble.INVALID_OBJECT_STATE, trouble.INVALID_SESSION_STATE, trouble.VM_ERROR)

# The programs that run a machine; names of processes are cut at 15 characters.
_PROCESSES = ("VBoxHeadless", "VirtualBoxVM")

# VirtualBox's states, by the names in its API, as ours.
_STATES = {
    MachineState.POWERED_OFF: "PoweredOff Teleported SettingUp Snapshotting RestoringSnapshot "
    "DeletingSnapshot",
    MachineState.SAVED: "Saved AbortedSaved",
    MachineState.ABORTED: "Aborted Stuck",
    MachineState.PAUSED: "Paused TeleportingPausedVM DeletingSnapshotPaused",
    MachineState.RUNNING: "Running Teleporting LiveSnapshotting OnlineSnapshotting DeletingSnapshotOnline "
    "Starting Restoring TeleportingIn Stopping Saving",
}
# Those of a process on its way in or out.
_TRANSIENT = "Starting Restoring TeleportingIn Stopping Saving"
_TRANSIENT_TIMEOUT_S = 60.0
# A process that has been told to power its machine down does so at once, or hangs.
_OBEY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Machine:
    """One of ours, as it was found: VirtualBox's object and our record."""

    name: str
    com: IMachine
    record: Record


class Machines:
    """The machines of one store in VirtualBox's registry."""

    def __init__(self, connection: Connection, home: Path) -> None:
        self._connection = connection
        # VirtualBox tells paths without links and detours.
        self._folder = home.resolve() / "virtualbox" / "machines"
        self._states = {number: ours for ours, names in _STATES.items() for number in self._numbers(names)}
        self._transient = set(self._numbers(_TRANSIENT))

    def _numbers(self, names: str) -> list[int]:
        """The running version's numbers of states, of which it may not have all."""
        numbers = [
            getattr(self._connection.constants, f"MachineState_{name}", None) for name in names.split()
        ]
        return [number for number in numbers if number is not None]

    # --- finding -----------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """Where the machine's files are; `MachineNotFoundError` for a name that no machine can have."""
        try:
            check_label(name, "machine name")
        except ConfigurationError:
            raise no_machine(name) from None
        return self._folder / name

    def folders(self) -> list[Path]:
        """The folders of all machines, also of those that VirtualBox does not know, or cannot tell of now."""
        return [folder for folder in self._folder.glob("*") if folder.is_dir()]

    def settings_file(self, name: str) -> Path:
        """The machine's settings, by which VirtualBox's registry tells it from others'."""
        return self.folder(name) / f"{name}.vbox"

    def find(self, name: str) -> Machine:
        """The machine of this store called ``name``; `MachineNotFoundError`."""
        com = self.registered(name)
        found = self._ours(com) if com is not None else None
        if found is None:
            raise no_machine(name)
        return found

    def registered(self, name: str) -> IMachine | None:
        """Whatever machine VirtualBox has under the name, ours or not."""
        with trouble.translated(f"machine {name!r} cannot be looked for"):
            try:
                return self._connection.vbox.find_machine(name)
            except Exception as error:
                if trouble.ignoring(error, trouble.OBJECT_NOT_FOUND):
                    return None
                raise

    def all(self) -> list[Machine]:
        """All machines of this store, oldest first."""
        found = []
        with trouble.translated("VirtualBox's machines cannot be listed"):
            registered = self._connection.vbox.get_machines_by_groups([record.GROUP])
        for com in registered:
            # One that is just being removed answers with errors.
            with suppress(DriverError), trouble.translated("a machine cannot be looked at"):
                if ours := self._ours(com):
                    found.append(ours)
        return sorted(found, key=lambda machine: machine.record.created)

    def forget_lost(self) -> None:
        """Unregister machines of this store whose settings file is gone: nothing can be done with them."""
        from virtualbox.library import CleanupMode

        with (
            self._connection.registry_lock(),
            trouble.translated("VirtualBox's machines cannot be listed"),
        ):
            for com in self._connection.vbox.machines:
                with suppress(DriverError), trouble.translated("a machine cannot be looked at"):
                    settings = str(com.settings_file_path)
                    if not com.accessible and self._is_here(settings) and not Path(settings).exists():
                        com.unregister(CleanupMode.unregister_only)

    def _ours(self, com: IMachine) -> Machine | None:
        if not com.accessible or not self._is_here(str(com.settings_file_path)):
            return None
        kept = record.read(com)
        return Machine(str(com.name), com, kept) if kept else None

    def _is_here(self, settings_file: str) -> bool:
        return Path(settings_file).is_relative_to(self._folder)

    # --- states ------------------------------------------------------------------------------------

    def state(self, machine: Machine) -> MachineState:
        """The machine's state now."""
        with trouble.translated(f"machine {machine.name!r} does not tell its state"):
            number = self._raw_state(machine)
            aborted = number == self._connection.constants.MachineState_Aborted
            if aborted and record.is_powered_down(machine.com):
                return MachineState.POWERED_OFF
            return self._states.get(number, MachineState.ABORTED)

    def is_stuck(self, machine: Machine) -> bool:
        """Whether its process is there, but its virtual CPU has failed ("guru meditation")."""
        return bool(self._raw_state(machine) == self._connection.constants.MachineState_Stuck)

    def settle(self, machine: Machine, deadline: Deadline) -> None:
        """Wait until the machine's process is not on its way in or out."""
        wait_for(
            lambda: self._raw_state(machine) not in self._transient,
            deadline,
            what=f"machine {machine.name!r}: its process to have begun or ended",
            interval_s=_POLL_S,
        )

    def _raw_state(self, machine: Machine) -> int:
        # Not pyvbox's enumeration, which lacks a value in the middle.
        return int(machine.com._i.state)

    # --- locks -------------------------------------------------------------------------------------

    @contextmanager
    def locked(
        self, machine: Machine, deadline: Deadline, doing: str, *, exclusive: bool = False
    ) -> Iterator[ISession]:
        """Hold the machine's lock: shared with its process if it has one, or exclusively.

        Waits for whoever has it; at the deadline `MachineStateError` names them.
        """
        from virtualbox.library import LockType

        kind = LockType.write if exclusive else LockType.shared
        session = self._connection.session()
        with trouble.translated(f"machine {machine.name!r} cannot {doing}"):
            self._lock(machine, session, kind, deadline, doing)
            try:
                yield session
            finally:
                self._unlock(session)

    def _lock(self, machine: Machine, session: ISession, kind: Any, deadline: Deadline, doing: str) -> None:
        def attempt() -> bool:
            try:
                machine.com.lock_machine(session, kind)
            except Exception as error:
                if trouble.ignoring(error, *_LOCKED):
                    return False
                raise
            return True

        try:
            wait_for(attempt, deadline, what="its lock", interval_s=_POLL_S)
        except WaitTimeoutError:
            raise _kept_locked(machine, deadline, doing) from None

    @staticmethod
    def _unlock(session: ISession) -> None:
        # When the machine's process has ended, the session is unlocked already.
        with suppress(Exception):
            session.unlock_machine()

    def wait_unlocked(self, machine: Machine, deadline: Deadline) -> None:
        """Wait until no process has to do with the machine any more."""
        from virtualbox.library import SessionState

        with trouble.translated(f"machine {machine.name!r}: its process does not end"):
            wait_for(
                lambda: machine.com.session_state == SessionState.unlocked,
                deadline,
                what=f"machine {machine.name!r}: the end of its process ({_holder(machine)})",
                interval_s=_POLL_S,
            )

    # --- power -------------------------------------------------------------------------------------

    def launch(self, machine: Machine, deadline: Deadline, *, gui: bool) -> None:
        """Start a process for the machine, which powers it on or goes on from its saved state."""
        doing = f"machine {machine.name!r} cannot be started"
        self.wait_unlocked(machine, deadline)
        console.begin(self.folder(machine.name))
        session = self._connection.session()
        try:
            with trouble.translated(doing):
                progress = machine.com.launch_vm_process(session, "gui" if gui else "headless", [])
            self._connection.wait(progress, deadline, doing)
            self.settle(machine, deadline)
            if (state := self.state(machine)) not in ON:
                raise MachineStateError(
                    f"{doing}: it was {state.value} right after", infrastructure=state is MachineState.ABORTED
                )
        except (DriverError, WaitTimeoutError) as error:
            raise self._explained(error, machine) from error
        finally:
            self._unlock(session)

    def command(self, machine: Machine, doing: str, act: Callable[[Any], Any], deadline: Deadline) -> None:
        """Let ``act`` do something with the running machine's ``IConsole``."""
        try:
            with self.locked(machine, deadline, doing) as session:
                progress = act(session.console)
                if progress is not None:
                    self._connection.wait(progress, deadline, f"machine {machine.name!r} cannot {doing}")
        except DriverUnavailableError:
            # Either VirtualBox's service is gone, and does not tell the state, or the machine's process.
            state = self.state(machine)
            raise MachineStateError(
                f"machine {machine.name!r} cannot {doing}: its process has ended, it is {state.value}",
                infrastructure=state is MachineState.ABORTED,
            ) from None

    def press_power_button(self, machine: Machine, deadline: Deadline) -> None:
        """Press it until the guest has shut down; `WaitTimeoutError`, `MachineStateError`."""
        while self.state(machine) in ON:
            if deadline.expired:
                raise still_on(machine.name, deadline)
            with suppress(DriverError):  # the guest may be on its way out
                self.command(machine, "be stopped", lambda there: there.power_button(), deadline)
            with suppress(WaitTimeoutError):
                wait_for(
                    lambda: self.state(machine) not in ON,
                    deadline.at_most(_PRESS_AGAIN_S),
                    what=f"machine {machine.name!r} to shut down",
                    interval_s=_POLL_S,
                )
        if self.state(machine) is MachineState.ABORTED:
            what = "got stuck (guru meditation)" if self.is_stuck(machine) else "was killed"
            raise MachineStateError(
                f"machine {machine.name!r}: VirtualBox's process {what} while the guest shut down",
                infrastructure=True,
            )
        self.wait_unlocked(machine, deadline)

    def power_down(self, machine: Machine, deadline: Deadline) -> None:
        """Cut the power of a machine that is on, or drop its saved state."""
        if self.state(machine) is MachineState.SAVED:
            with self.locked(machine, deadline, "have its saved state dropped", exclusive=True) as session:
                session.machine.discard_saved_state(True)
        self.end(machine, deadline)
        if self.state(machine) is MachineState.ABORTED:
            with self.locked(machine, deadline, "be powered down", exclusive=True) as session:
                record.mark_powered_down(session.machine)

    def end(self, machine: Machine, deadline: Deadline) -> None:
        """See to it that the machine has no process, in whatever state it is. A saved state stays.

        One that hangs is killed. Raises `MachineStateError` if another program keeps the machine locked.
        """
        from virtualbox.library import SessionState

        patience = deadline.at_most(_TRANSIENT_TIMEOUT_S)
        while True:
            with trouble.translated(f"machine {machine.name!r}: its process does not end"):
                if machine.com.session_state == SessionState.unlocked:
                    return
            if deadline.expired:
                raise _kept_locked(machine, deadline, "be ended")
            if self._raw_state(machine) not in self._transient and self._can_be_ended(machine):
                self._make_end(machine)
            elif patience.expired:  # it neither begins nor ends
                self._kill(machine)
            time.sleep(_POLL_S)

    def _can_be_ended(self, machine: Machine) -> bool:
        return self.state(machine) in ON or self.is_stuck(machine)

    def _make_end(self, machine: Machine) -> None:
        try:
            self.command(
                machine, "be powered down", lambda here: here.power_down(), Deadline(_OBEY_TIMEOUT_S)
            )
        except (DriverError, WaitTimeoutError):
            # It may have ended meanwhile; if it hangs, nothing else helps.
            if self._can_be_ended(machine):
                self._kill(machine)

    def _kill(self, machine: Machine) -> None:
        """Kill the machine's process, if it has one on this host."""
        import psutil

        if not self._connection.is_local:
            return
        with suppress(psutil.Error), trouble.translated(f"machine {machine.name!r} cannot be ended"):
            if pid := int(machine.com.session_pid):
                process = psutil.Process(pid)
                if process.name().startswith(_PROCESSES):
                    process.kill()

    def log_tail(self, machine: Machine) -> str:
        """The last lines of the log of the machine's latest process."""
        try:
            text = (self.folder(machine.name) / "Logs" / "VBox.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-_LOG_TAIL_LINES:])

    def _explained(self, error: VmfestError, machine: Machine) -> VmfestError:
        """The error of a failed start with what the machine's log and this host tell besides."""
        tail = self.log_tail(machine)
        hint = error.hint or trouble.remedy_for(tail)
        if not hint and self._connection.is_local and not trouble.DEVICE.exists():
            hint = trouble.NO_MODULE
        said = "\n".join(f"  | {line}" for line in tail.splitlines())
        message = f"{error.message}\n  VBox.log ends with:\n{said}" if tail else error.message
        return type(error)(message, hint=hint, infrastructure=error.infrastructure)


def _kept_locked(machine: Machine, deadline: Deadline, doing: str) -> MachineStateError:
    """Another program did not let go of the machine by the deadline."""
    return MachineStateError(
        f"machine {machine.name!r} cannot {doing}: it has been locked by {_holder(machine)} "
        f"for {deadline.timeout_s:g} s",
        hint="is it open in VirtualBox's own windows, or in another program?",
    )


def _holder(machine: Machine) -> str:
    """Who holds the machine's lock, as far as VirtualBox tells."""
    with suppress(Exception):
        name, pid = str(machine.com.session_name), int(machine.com.session_pid)
        return f"{name or 'a program'}" + (f" (process {pid})" if pid else "")
    return "another program"
