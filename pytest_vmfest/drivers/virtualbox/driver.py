"""The VirtualBox driver: machines in the user's own VirtualBox, through pyvbox.

A machine is registered in VirtualBox's group ``/vmfest``, with its files in the store; what VirtualBox does
not know of it is kept as its extra data. So any process with the same store and VirtualBox can operate it.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import (
    ON,
    Driver,
    DriverSettings,
    MachineInfo,
    MachineState,
    PropertyKind,
)
from pytest_vmfest.drivers.disk_images import check_readable, find_image_program
from pytest_vmfest.drivers.refusals import (
    check_snapshot_name,
    find_snapshot,
    no_space_left,
    wrong_state,
)
from pytest_vmfest.drivers.virtualbox import (
    address,
    console,
    diagnosis,
    frozen,
    hardware,
    moving,
    nat,
    networks,
    screen,
    snapshots,
    trouble,
)
from pytest_vmfest.drivers.virtualbox.connection import Connection, connect
from pytest_vmfest.drivers.virtualbox.machines import QUICK_S, Machine, Machines
from pytest_vmfest.drivers.virtualbox.media import Media
from pytest_vmfest.drivers.virtualbox.record import GROUP, Record
from pytest_vmfest.errors import (
    DestroyError,
    DriverError,
    MachineExistsError,
    MachineNotFoundError,
    NotSupportedError,
    ThawError,
    clean_up_after,
)
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.specs import Endpoint, ImageModel
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtualbox.library import IConsole

    from pytest_vmfest.checks import Check
    from pytest_vmfest.drivers.virtualbox.snapshots import Snapshot
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.specs import MachineSpec

_POWER_DOWN_TIMEOUT_S = 60.0
_DELETE_TIMEOUT_S = 120.0
_SSH_PORT = 22
# With less than this, the file system of a machine that was halted is full.
_FULL_BYTES = 1 << 20


class VirtualBoxDriver(Driver):
    """Machines run by VirtualBox. They may be operated from any process that has the same store."""

    name = "virtualbox"
    freezes = True
    takes_url = True

    def __init__(self, settings: DriverSettings) -> None:
        """Remember the settings. Touches neither disk nor VirtualBox."""
        super().__init__(settings)
        self._open: _Opened | None = None

    # --- the driver itself -------------------------------------------------------------------------

    @classmethod
    def why_not(cls, settings: DriverSettings) -> str:
        """Why VirtualBox cannot be used here, found out without its service; empty if nothing does."""
        return diagnosis.why_not(settings)

    def open(self) -> None:
        """Connect to VirtualBox; `DriverUnavailableError` says what is missing."""
        if self._open is None:
            self._open = _Opened(self.settings)

    def close(self) -> None:
        """Let go of VirtualBox, whose service ends by itself. Machines are left as they are."""
        self._open = None

    def describe(self) -> str:
        """``VirtualBox 7.2.22 (…)``, or what is wrong with it."""
        return diagnosis.describe(self.settings, self._open.connection if self._open else None)

    def check(self) -> list[Check]:
        """Version, kernel modules, SDK, service, networks."""
        return diagnosis.check(self.settings, self._open.connection if self._open else None)

    # --- private networks --------------------------------------------------------------------------

    def _create_network(self, name: str) -> None:
        """Create a private network: an internal network of VirtualBox, which needs no process."""
        networks.create_network(self.settings.home, name)

    def _remove_network(self, name: str) -> None:
        """Remove a private network; one that is not there is fine."""
        networks.remove_network(self.settings.home, name)

    # --- machines ----------------------------------------------------------------------------------

    def _create(self, spec: MachineSpec) -> None:
        """Create a machine on a differencing image. On failure nothing is left of it."""
        there = self._opened()
        image, facts = spec.image, None
        if spec.thaw_from is not None:
            facts = frozen.facts_of(spec.thaw_from)
            image = frozen.model(image, spec.thaw_from)
        # Making a base takes long, and need not hold up others.
        with (
            there.media.ready(image, permanent=spec.permanent),
            there.connection.registry_lock(),
        ):
            there.machines.forget_lost()
            if (taken := there.machines.registered(spec.name)) is not None:
                raise MachineExistsError(
                    f"a machine named {spec.name!r} exists already in VirtualBox: {taken.settings_file_path}",
                    hint=f"if it is of this store, remove it with: vmfest instance destroy {spec.name}",
                )
            folder = there.machines.folder(spec.name)
            with writing_to(folder):
                make_private(folder.parent)
                shutil.rmtree(folder, ignore_errors=True)  # of one whose creation was killed
                folder.mkdir(mode=0o700)
            try:
                if spec.freeze_to is not None:
                    with writing_to(spec.freeze_to):
                        make_private(spec.freeze_to)
                with trouble.translated(f"machine {spec.name!r} cannot be created"):
                    self._register(there, spec, image, folder, facts)
            except BaseException as error:
                clean_up_after(error, lambda: self._remove(there, spec.name))
                raise

    def _register(
        self,
        there: _Opened,
        spec: MachineSpec,
        image: ImageModel,
        folder: Path,
        facts: frozen.Facts | None,
    ) -> None:
        from virtualbox.library import PortMode

        connection, vbox = there.connection, there.connection.vbox
        com = connection.api.create_machine(
            vbox,
            str(there.machines.settings_file(spec.name)),
            spec.name,
            [GROUP],
            hardware.os_type(connection, spec),
        )
        hardware.configure(connection, com, spec)
        networks.configure(connection, self.settings, com, spec)
        if facts is not None:
            frozen.fit_cards(com, spec, facts)
        port = com.get_serial_port(0)
        port.path = str(folder / console.FILE)
        port.host_mode = PortMode.raw_file
        port.enabled = True
        record = Record.of(spec)
        record.write(com)
        vbox.register_machine(com)
        machine = Machine(spec.name, com, record)
        with there.machines.locked(
            machine, Deadline(QUICK_S), "be given its disk", exclusive=True
        ) as session:
            mutable = session.machine
            if spec.permanent:
                there.media.attach_permanent(mutable, image)
            else:
                there.media.attach(mutable, image)
            hardware.attach(connection, mutable, spec, folder)
            mutable.save_settings()
            if spec.thaw_from is not None:
                frozen.adopt(mutable, folder, spec.thaw_from)

    def start(self, name: str, deadline: Deadline) -> None:
        """Power on, or go on from the saved state; returns when the virtual CPU runs."""
        there, machine, state = self._look(name)
        if state in ON:
            there.machines.settle(machine, deadline)  # it may be on its way out
            state = there.machines.state(machine)
        if state is MachineState.PAUSED:
            self.resume(name)
        elif state is not MachineState.RUNNING:
            self._launch(there, machine, deadline)

    def pause(self, name: str) -> None:
        """Halt the virtual CPU."""
        there, machine, state = self._on(name, "be paused")
        if state is not MachineState.PAUSED:
            there.machines.command(machine, "be paused", lambda here: here.pause(), Deadline(QUICK_S))

    def resume(self, name: str) -> None:
        """Let a paused machine go on."""
        there, machine, state = self._on(name, "be resumed")
        if state is not MachineState.RUNNING:
            there.machines.command(machine, "be resumed", lambda here: here.resume(), Deadline(QUICK_S))

    def stop(self, name: str, deadline: Deadline) -> None:
        """Press the ACPI power button and wait until the guest has shut down.

        Raises `WaitTimeoutError` if it has not by the deadline, `MachineStateError` if VirtualBox was killed.
        """
        there, machine, state = self._look(name)
        if state is MachineState.PAUSED:
            self.resume(name)  # a guest that stands still could not react
        if state in ON:
            there.machines.press_power_button(machine, deadline)

    def power_down(self, name: str) -> None:
        """Cut the power, or drop the saved state. The disk keeps what the guest had written to it."""
        there, machine, _ = self._look(name)
        there.machines.power_down(machine, Deadline(_POWER_DOWN_TIMEOUT_S))

    def save_state(self, name: str, deadline: Deadline) -> None:
        """Keep memory and devices in the machine's folder and power off."""
        there, machine, state = self._look(name)
        if state is MachineState.SAVED:
            return
        if state not in ON:
            raise wrong_state(name, state, "be saved")
        with there.machines.locked(machine, deadline, "be saved") as session:
            progress = session.machine.save_state()
            there.connection.wait(progress, deadline, f"machine {name!r} cannot be saved")
        there.machines.wait_unlocked(machine, deadline)

    def _destroy(self, name: str) -> None:
        """End the machine's process, unregister it and remove its files; one that is not there is fine."""
        there = self._opened()
        with suppress(MachineNotFoundError):
            there.machines.folder(name)  # a name that a machine can have
            self._remove(there, name)

    def _remove(self, there: _Opened, name: str) -> None:
        with suppress(MachineNotFoundError):
            machine = there.machines.find(name)
            there.machines.end(machine, Deadline(_POWER_DOWN_TIMEOUT_S))
            there.media.unregister(machine.com, there.machines.folder(name))
        folder = there.machines.folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        there.machines.forget_lost()  # its settings are gone
        if folder.exists():
            left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) or ["the folder"]
            raise DestroyError(f"machine {name!r}: cannot remove {', '.join(left)} in {folder}")

    def state(self, name: str) -> MachineState:
        """The state now."""
        return self._look(name)[2]

    def standstill(self, name: str) -> str:
        """VirtualBox halts a machine whose disk cannot grow; its log may not be able to grow, either."""
        folder = self._opened().machines.folder(name)
        return no_space_left(folder) if shutil.disk_usage(folder).free < _FULL_BYTES else ""

    def machines(self) -> list[MachineInfo]:
        """All machines of this store, oldest first. One that is half-created shows without an image."""
        there = self._opened()
        found = []
        for machine in there.machines.all():
            with suppress(DriverError), trouble.translated("a machine cannot be looked at"):
                found.append(self._info(there, machine))
        known = {info.name for info in found}
        for folder in there.machines.folders():
            if folder.name not in known:
                with suppress(FileNotFoundError):  # it has just been destroyed
                    found.append(MachineInfo.half_made(folder))
        return sorted(found, key=lambda info: info.created)

    def _info(self, there: _Opened, machine: Machine) -> MachineInfo:
        state = there.machines.state(machine)
        return MachineInfo(
            name=machine.name,
            state=state,
            image=machine.record.image,
            memory_mib=int(machine.com.memory_size),
            cpus=int(machine.com.cpu_count),
            tags=machine.record.tags,
            created=machine.record.created,
            endpoint=self._endpoint(there, machine) if state in ON else None,
        )

    # --- machines frozen with their memory ---------------------------------------------------------

    def freezing_key(self, spec: MachineSpec) -> str:
        """A digest of VirtualBox's version, this host's CPU, the hardware and the image."""
        if self.settings.url is not None:
            raise NotSupportedError("machines of a VirtualBox behind a web service cannot be frozen")
        version = self._opened().connection.version
        check_readable(spec.image)
        return frozen.key(spec, version)

    def frozen_mib(self, spec: MachineSpec) -> int:
        """Its memory, and the copies of its disk that are yet to be made, as far as that can be read."""
        try:
            copies = self._opened().media.freezing_bytes(spec.image)
        except (DriverError, OSError):  # who makes the machine is told what is wrong
            copies = 0
        return spec.hardware.memory_mib + (copies >> 20)

    def freeze(self, name: str, deadline: Deadline) -> None:
        """Save its state, copy its disk with all that it stands on, and remove it from VirtualBox."""
        there, machine, state = self._look(name)
        target = Path(machine.record.freeze_to)
        if state is not MachineState.RUNNING or not machine.record.freeze_to:
            raise wrong_state(name, state, "be frozen")
        self.save_state(name, deadline)
        slots = networks.first_private_slot(machine.record.network) + len(machine.record.nics)
        with trouble.translated(f"machine {name!r} cannot be frozen"):
            folder = there.machines.folder(name)
            frozen.keep(there.connection, machine.com, slots, folder, target, deadline)
        # What takes long is done by now when others go on from it.
        with there.media.ready(ImageModel(name, target / frozen.DISK, "vdi")):
            self._remove(there, name)

    def move_in(self, name: str, run: Callable[[str, bytes], object]) -> bool:
        """Give the guest the addresses that its cards have by the settings, and plug the cards in."""
        there, machine, _ = self._on(name, "be given its addresses")
        return moving.move_in(there.machines, self.settings, machine, run)

    # --- reaching the guest ------------------------------------------------------------------------

    def endpoint(self, name: str, deadline: Deadline) -> Endpoint:
        """The guest's host-only or bridged address, once it has one, or the port that leads to it by NAT."""
        there, machine, _ = self._on(name, "be reached")

        def watch() -> None:
            state = there.machines.state(machine)
            if state not in ON:
                raise wrong_state(name, state, "be reached")

        found = wait_for(
            lambda: self._endpoint(there, machine),
            deadline,
            what=f"machine {name!r}: an address for its first network adapter",
            interval_s=0.1,
            watch=watch,
        )
        assert found is not None
        return found

    def _endpoint(self, there: _Opened, machine: Machine) -> Endpoint | None:
        with trouble.translated(f"machine {machine.name!r}: its address cannot be looked up"):
            mode = machine.record.network
            if mode == "nat" or machine.record.thaw_from:
                slot = networks.nat_slot(mode)
                by_nat = nat.ssh_endpoint(machine.com, slot) if slot is not None else None
                if by_nat is not None:
                    return by_nat
                if mode == "nat":
                    raise DriverError(f"machine {machine.name!r} has no NAT rule {nat.SSH_RULE!r} any more")
            ip = address.look(there.connection, machine.com, machine.record.network)
            return Endpoint(ip, _SSH_PORT) if ip else None

    def forward(self, name: str, guest_port: int) -> Endpoint:
        """A way to a TCP port of the running guest: its own address, or by NAT a free loopback port."""
        there, machine, _ = self._on(name, "have a port forwarded")
        if machine.record.network != "nat":
            return Endpoint(self.endpoint(name, Deadline(QUICK_S)).host, guest_port)
        with there.machines.locked(machine, Deadline(QUICK_S), "have a port forwarded") as session:
            return nat.forward(session.machine, 0, guest_port, int(machine.com.session_pid))

    # --- looking in, typing ------------------------------------------------------------------------

    def console(self, name: str) -> str:
        """All that the guest wrote to its first serial port since the machine was created."""
        machines = self._opened().machines
        folder = machines.folder(name)
        if not folder.exists():
            machines.find(name)
        return console.text(folder)

    def screenshot(self, name: str, path: Path) -> None:
        """Write the machine's screen to ``path`` as PNG."""
        there, machine, _ = self._on(name, "show its screen")
        png = there.connection.constants.BitmapFormat_PNG
        taken = b""

        def take(here: IConsole) -> None:
            nonlocal taken
            taken = screen.picture(here, png)

        there.machines.command(machine, "show its screen", take, Deadline(QUICK_S))
        with writing_to(path):
            path.write_bytes(taken)

    def send_keys(self, name: str, strokes: Sequence[Stroke]) -> None:
        """Press and release keys on the machine's keyboard, in order; returns after the last release."""
        there, machine, state = self._on(name, "be typed to")
        if state is MachineState.PAUSED:
            raise wrong_state(name, state, "be typed to")
        there.machines.command(
            machine, "be typed to", lambda here: screen.type_keys(here, strokes), Deadline(QUICK_S)
        )

    # --- snapshots ---------------------------------------------------------------------------------

    def take_snapshot(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Keep disk, memory and devices under a name that is not taken yet; the machine goes on."""
        there, machine, state = self._look(name)
        check_snapshot_name(snapshot, self._snapshots(machine), name)
        if state is MachineState.SAVED:
            raise wrong_state(name, state, "have a snapshot taken: start it, or power it down")
        text = snapshots.description(paused=state is MachineState.PAUSED)
        with there.machines.locked(machine, deadline, "have a snapshot taken") as session:
            progress, _ = session.machine.take_snapshot(snapshot, text, True)
            there.connection.wait(progress, deadline, f"machine {name!r}: no snapshot could be taken")

    def revert(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Go back to a snapshot. VirtualBox ends the machine's process for that and starts another."""
        there, machine, _ = self._look(name)
        target = find_snapshot(snapshot, self._snapshots(machine), name)
        there.machines.end(machine, deadline)
        with there.machines.locked(machine, deadline, "go back to a snapshot") as session:
            progress = session.machine.restore_snapshot(target.com)
            there.connection.wait(progress, deadline, f"machine {name!r} cannot go back to {snapshot!r}")
        if target.has_memory:
            self._launch(there, machine, deadline)
            if target.paused:
                self.pause(name)

    def snapshots(self, name: str) -> list[str]:
        """Names of the machine's snapshots, oldest first."""
        return list(self._snapshots(self._look(name)[1]))

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Forget a snapshot; one that is not there is fine."""
        there, machine, _ = self._look(name)
        target = self._snapshots(machine).get(snapshot)
        if target is None:
            return
        deadline = Deadline(_DELETE_TIMEOUT_S)
        with there.machines.locked(machine, deadline, "have a snapshot deleted") as session:
            progress = session.machine.delete_snapshot(str(target.com.id_p))
            there.connection.wait(progress, deadline, f"machine {name!r}: {snapshot!r} cannot be deleted")

    def _snapshots(self, machine: Machine) -> dict[str, Snapshot]:
        with trouble.translated(f"machine {machine.name!r}: its snapshots cannot be listed"):
            return snapshots.of(machine.com)

    # --- what is kept with a machine ---------------------------------------------------------------

    def get_property(self, name: str, kind: PropertyKind, key: str) -> str:
        """A guest property, or extra data; empty if there is none."""
        machine = self._look(name)[1].com
        with trouble.translated(f"machine {name!r}: {key!r} cannot be read"):
            if kind is PropertyKind.GUEST:
                return str(machine.get_guest_property_value(key))
            return str(machine.get_extra_data(key))

    def set_property(self, name: str, kind: PropertyKind, key: str, value: str) -> None:
        """Set a guest property, or extra data; an empty value removes it."""
        there, machine, _ = self._look(name)
        with there.machines.locked(machine, Deadline(QUICK_S), f"have {key!r} set") as session:
            if kind is PropertyKind.EXTRA:
                session.machine.set_extra_data(key, value)
            elif value:
                session.machine.set_guest_property_value(key, value)
            else:
                session.machine.delete_guest_property(key)
            session.machine.save_settings()

    # --- images ------------------------------------------------------------------------------------

    def check_image(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` for a disk that is none."""
        self._opened().media.check(image)

    # --- parts -------------------------------------------------------------------------------------

    def _opened(self) -> _Opened:
        self.open()
        assert self._open is not None
        return self._open

    def _look(self, name: str) -> tuple[_Opened, Machine, MachineState]:
        there = self._opened()
        machine = there.machines.find(name)
        return there, machine, there.machines.state(machine)

    def _on(self, name: str, purpose: str) -> tuple[_Opened, Machine, MachineState]:
        """The machine, which has to be on."""
        there, machine, state = self._look(name)
        if state not in ON:
            raise wrong_state(name, state, purpose)
        return there, machine, state

    def _launch(self, there: _Opened, machine: Machine, deadline: Deadline) -> None:
        networks.check_networks(self.settings.home, machine.record.nics)
        if there.machines.is_stuck(machine):
            there.machines.end(machine, deadline)
        is_saved = there.machines.state(machine) is MachineState.SAVED
        if not is_saved:
            moving.plug_in_if_dropped(there.machines, self.settings, machine)
        thaws = is_saved and frozen.is_adopted(machine.com)
        try:
            with _ports(there.machines, machine, deadline):
                there.machines.launch(machine, deadline, gui=self.settings.gui)
        except DriverError as error:
            if thaws and there.machines.state(machine) is MachineState.SAVED:
                raise ThawError(error.message, hint=error.hint) from error
            raise


class _Opened:
    """What is there while the driver is open."""

    def __init__(self, settings: DriverSettings) -> None:
        self.connection: Connection = connect(settings)
        self.machines = Machines(self.connection, settings.home)
        self.media = Media(self.connection, settings.home, lambda: find_image_program(settings.qemu))


@contextmanager
def _ports(machines: Machines, machine: Machine, deadline: Deadline) -> Iterator[None]:
    """While the machine is launched, hold the ports of its NAT rules; then hand them over to its process."""
    slot = networks.nat_slot(machine.record.network)
    if slot is None or not _has_nat_rules(machine, slot):
        yield
        return
    with ExitStack() as held:
        with machines.locked(machine, deadline, "be given ports", exclusive=True) as session:
            ports = held.enter_context(nat.Ports(session.machine, slot))
        yield
        with machines.locked(machine, deadline, "be given ports") as session:
            ports.hand_over(session.machine, int(machine.com.session_pid))


def _has_nat_rules(machine: Machine, slot: int) -> bool:
    with trouble.translated(f"machine {machine.name!r}: its NAT rules cannot be read"):
        return bool(nat.rules(machine.com, slot))
