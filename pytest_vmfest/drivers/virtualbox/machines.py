"""VirtualBox's machines: finding ours, their states, locking them, starting and ending their processes."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.refusals import no_machine, still_on
from pytest_vmfest.drivers.virtualbox import console, record, trouble
from pytest_vmfest.errors import (
    ConfigurationError,
    DriverError,
    MachineStateError,
    WaitTimeoutError,
)
from pytest_vmfest.specs import check_label
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtualbox.library import IMachine, ISession

    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.drivers.virtualbox.record import Record

_POLL_S = 0.05
# A guest whose power button is not watched yet misses the press.
_PRESS_AGAIN_S = 5.0
_LOG_TAIL_LINES = 8

_DEVICE = Path("/dev/vboxdrv")

# The programs that run a machine; names of processes are cut at 15 characters.
_PROCESSES = ("VBoxHeadless", "VirtualBoxVM")

# VirtualBox's states, by the names in its API, as ours. In the transient ones a process runs.
_STATES = {
    MachineState.POWERED_OFF: "PoweredOff Teleported",
    MachineState.SAVED: "Saved AbortedSaved Restoring RestoringSnapshot",
    MachineState.ABORTED: "Aborted Stuck",
    MachineState.PAUSED: "Paused TeleportingPausedVM DeletingSnapshotPaused",
    MachineState.RUNNING: "Running Starting Stopping Saving Teleporting LiveSnapshotting OnlineSnapshotting "
    "TeleportingIn DeletingSnapshotOnline",
}


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
        self._home = home
        constants = connection.constants
        self._states = {
            getattr(constants, f"MachineState_{name}"): ours
            for ours, names in _STATES.items()
            for name in names.split()
            if hasattr(constants, f"MachineState_{name}")
        }

    # --- finding -----------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """Where the machine's files are; `MachineNotFoundError` for a name that no machine can have."""
        try:
            check_label(name, "machine name")
        except ConfigurationError:
            raise no_machine(name) from None
        return self._home / "virtualbox" / "machines" / name

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
                if trouble.code_of(error) == trouble.OBJECT_NOT_FOUND:
                    return None
                raise

    def all(self) -> list[Machine]:
        """All machines of this store, oldest first."""
        found = []
        for com in self._connection.vbox.get_machines_by_groups([record.GROUP]):
            # One that is just being removed answers with errors.
            with suppress(DriverError), trouble.translated("a machine cannot be looked at"):
                if ours := self._ours(com):
                    found.append(ours)
        return sorted(found, key=lambda machine: machine.record.created)

    def forget_lost(self) -> None:
        """Unregister machines of this store whose settings file is gone: nothing can be done with them."""
        from virtualbox.library import CleanupMode

        for com in self._connection.vbox.machines:
            with suppress(DriverError), trouble.translated("a machine cannot be looked at"):
                if com.accessible or not self._is_here(str(com.settings_file_path)):
                    continue
                com.unregister(CleanupMode.unregister_only)

    def _ours(self, com: IMachine) -> Machine | None:
        if not com.accessible or not self._is_here(str(com.settings_file_path)):
            return None
        kept = record.read(com)
        return Machine(str(com.name), com, kept) if kept else None

    def _is_here(self, settings_file: str) -> bool:
        return settings_file.startswith(f"{self._home / 'virtualbox' / 'machines'}/")

    # --- states ------------------------------------------------------------------------------------

    def state(self, machine: Machine) -> MachineState:
        """The machine's state now."""
        with trouble.translated(f"machine {machine.name!r} does not tell its state"):
            state = self._states.get(self._raw_state(machine), MachineState.ABORTED)
            if state is MachineState.ABORTED and not self.is_stuck(machine):
                return MachineState.POWERED_OFF if record.is_powered_down(machine.com) else state
            return state

    def is_stuck(self, machine: Machine) -> bool:
        """Whether its process is there, but its virtual CPU has failed ("guru meditation")."""
        return bool(self._raw_state(machine) == self._connection.constants.MachineState_Stuck)

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
                if trouble.code_of(error) not in (
                    trouble.INVALID_OBJECT_STATE,
                    trouble.INVALID_SESSION_STATE,
                    trouble.VM_ERROR,  # its process is just beginning or ending
                ):
                    raise
                return False
            return True

        try:
            wait_for(attempt, deadline, what="its lock", interval_s=_POLL_S)
        except WaitTimeoutError:
            raise MachineStateError(
                f"machine {machine.name!r} cannot {doing}: it has been locked by "
                f"{_holder(machine)} for {deadline.timeout_s:g} s",
                hint="is it open in VirtualBox's own windows, or in another program?",
            ) from None

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
        except DriverError as error:
            raise self._explained(error, machine) from error
        finally:
            self._unlock(session)
        self._await(machine, lambda state: state is MachineState.RUNNING, deadline, "to run")

    def command(self, machine: Machine, doing: str, act: Callable[[Any], Any], deadline: Deadline) -> None:
        """Let ``act`` do something with the running machine's ``IConsole``."""
        with self.locked(machine, deadline, doing) as session:
            progress = act(session.console)
            if progress is not None:
                self._connection.wait(progress, deadline, f"machine {machine.name!r} cannot {doing}")

    def press_power_button(self, machine: Machine, deadline: Deadline) -> None:
        """Press it until the guest has shut down; `WaitTimeoutError`, `MachineStateError`."""
        while self.state(machine) in (MachineState.RUNNING, MachineState.PAUSED):
            if deadline.expired:
                raise still_on(machine.name, deadline)
            with suppress(DriverError):  # the guest may be on its way out
                self.command(machine, "be stopped", lambda there: there.power_button(), deadline)
            with suppress(WaitTimeoutError):
                self._await(
                    machine,
                    lambda state: state not in (MachineState.RUNNING, MachineState.PAUSED),
                    deadline.at_most(_PRESS_AGAIN_S),
                    "to shut down",
                )
        if self.state(machine) is MachineState.ABORTED:
            raise MachineStateError(
                f"machine {machine.name!r}: VirtualBox's process was killed while the guest shut down"
            )
        self.wait_unlocked(machine, deadline)

    def power_down(self, machine: Machine, deadline: Deadline) -> None:
        """Cut the power of a machine that is on, or drop its saved state."""
        if self.state(machine) is MachineState.SAVED:
            with self.locked(machine, deadline, "have its saved state dropped", exclusive=True) as session:
                session.machine.discard_saved_state(True)
        self.end(machine, deadline)
        if self.state(machine) is MachineState.ABORTED:
            with trouble.translated(f"machine {machine.name!r} cannot be powered down"):
                record.mark_powered_down(machine.com)

    def end(self, machine: Machine, deadline: Deadline) -> None:
        """See to it that the machine has no process, in whatever state it is. A saved state stays."""
        if self.state(machine) in (MachineState.RUNNING, MachineState.PAUSED) or self.is_stuck(machine):
            try:
                self.command(machine, "be powered down", lambda here: here.power_down(), deadline)
            except (DriverError, WaitTimeoutError):
                # It may have ended meanwhile; if it hangs, nothing else helps.
                self._kill(machine)
        self.wait_unlocked(machine, deadline)

    @staticmethod
    def _kill(machine: Machine) -> None:
        """Kill the machine's process, if it has one on this host."""
        import psutil

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

    def _await(
        self,
        machine: Machine,
        fits: Callable[[MachineState], bool],
        deadline: Deadline,
        what: str,
    ) -> None:
        wait_for(
            lambda: fits(self.state(machine)),
            deadline,
            what=f"machine {machine.name!r} {what}",
            interval_s=_POLL_S,
        )

    def _explained(self, error: DriverError, machine: Machine) -> DriverError:
        """The error of a failed start with what the machine's log and this host tell besides."""
        tail = self.log_tail(machine)
        hint = error.hint or trouble.remedy_for(tail)
        if not hint and self._connection.is_local and not _DEVICE.exists():
            hint = trouble.NO_MODULE
        if not tail:
            return DriverError(error.message, hint=hint)
        said = "\n".join(f"  | {line}" for line in tail.splitlines())
        return DriverError(f"{error.message}\n  VBox.log ends with:\n{said}", hint=hint)


def _holder(machine: Machine) -> str:
    """Who holds the machine's lock, as far as VirtualBox tells."""
    with suppress(Exception):
        name, pid = str(machine.com.session_name), int(machine.com.session_pid)
        return f"{name or 'a program'}" + (f" (process {pid})" if pid else "")
    return "another program"
