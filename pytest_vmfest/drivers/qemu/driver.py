"""The QEMU driver: a machine is a folder, run by a QEMU process of its own, without root."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import ON, Driver, DriverSettings, MachineInfo, MachineState
from pytest_vmfest.drivers.disk_images import check_readable
from pytest_vmfest.drivers.qemu import diagnosis, frozen, host, listing, nat, record, snapshots
from pytest_vmfest.drivers.qemu.accel import Accel, choose_accel
from pytest_vmfest.drivers.qemu.aio import Aio, choose_aio
from pytest_vmfest.drivers.qemu.disks import Disks
from pytest_vmfest.drivers.qemu.networks import Networks
from pytest_vmfest.drivers.qemu.process import running_in
from pytest_vmfest.drivers.qemu.record import Record, Store
from pytest_vmfest.drivers.qemu.runner import Launch, Runner
from pytest_vmfest.drivers.qemu.snapshots import Mode, Snapshot
from pytest_vmfest.drivers.refusals import (
    check_snapshot_name,
    find_snapshot,
    no_space_left,
    still_on,
    wrong_state,
)
from pytest_vmfest.errors import (
    DestroyError,
    DriverError,
    MachineNotFoundError,
    MachineStateError,
    NotSupportedError,
    WaitTimeoutError,
)
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.specs import Endpoint
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    from pytest_vmfest.checks import Check
    from pytest_vmfest.drivers.qemu.monitor import Monitor
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.specs import ImageModel, MachineSpec

# A guest whose power button is not watched yet misses the press.
_PRESS_AGAIN_S = 5.0
# The shortest hold that guests see reliably under emulation.
_KEY_HOLD_MS = 10
_DELETE_TIMEOUT_S = 60.0
_DESTROY_TIMEOUT_S = 10.0


class QemuDriver(Driver):
    """Machines run by QEMU. They may be operated from any process that has the same store."""

    name = "qemu"
    freezes = True

    def __init__(self, settings: DriverSettings) -> None:
        """Remember the settings. Touches neither disk nor QEMU."""
        super().__init__(settings)
        self._cache = settings.home / "cache"
        self._store = Store(settings.home)
        self._networks = Networks(settings.home)
        self._runner = Runner(self._store, self._networks)
        self._open: _Opened | None = None

    # --- the driver itself -------------------------------------------------------------------------

    def open(self) -> None:
        """Find QEMU and what it can use here; `DriverUnavailableError` says what to install."""
        if self._open is None:
            programs = host.find_programs(self.settings.qemu)
            accel = choose_accel(self.settings.accel, programs.system, self._cache)
            self._open = _Opened(programs, accel, choose_aio(programs.image, self._cache))

    def close(self) -> None:
        """Let go of all monitors. Machines are left as they are."""
        self._runner.close()

    def describe(self) -> str:
        """``QEMU 7.2.22 (tcg: no KVM: …)``, or what is wrong with it."""
        programs, accel = (self._open.programs, self._open.accel) if self._open else (None, None)
        return diagnosis.describe(self.settings, programs, accel)

    def check(self) -> list[Check]:
        """Programs, version, accelerator and firmware."""
        return diagnosis.check(self.settings, self._cache)

    # --- private networks --------------------------------------------------------------------------

    def _create_network(self, name: str) -> None:
        """Create a private network: a switch process that machines connect to."""
        self._networks.create(name)

    def _remove_network(self, name: str) -> None:
        """Remove a private network; one that is not there is fine."""
        self._networks.remove(name)

    # --- machines ----------------------------------------------------------------------------------

    def _create(self, spec: MachineSpec) -> None:
        """Create a powered-off machine on an overlay. On failure nothing is left of it."""
        _check_supported(spec)
        firmware = host.find_efi_firmware() if spec.firmware == "efi" else None
        disks = self._disks()
        source = frozen.facts_of(spec.thaw_from) if spec.thaw_from else None
        mac, stopped = (source.mac, source.stopped) if source else (None, None)
        folder = self._store.add(Record(spec, mac=mac, stopped=stopped))
        try:
            if spec.freeze_to is not None:
                with writing_to(spec.freeze_to):
                    make_private(spec.freeze_to)
            if spec.thaw_from is not None:
                frozen.furnish(folder, spec.thaw_from, firmware is not None)
            else:
                disks.create_overlay(spec.image, folder / record.DISK)
                if firmware is not None:
                    with writing_to(folder):
                        shutil.copyfile(firmware.variables, folder / record.EFI_VARIABLES)
        except BaseException:
            self._store.remove(spec.name)
            raise

    def start(self, name: str, deadline: Deadline) -> None:
        """Power on, or go on from the saved state; returns when the virtual CPU runs."""
        machine, state = self._look(name)
        if state is MachineState.PAUSED:
            self.resume(name)
        elif state is MachineState.SAVED:
            machine = self._launch(machine, deadline, load=snapshots.SAVED_TAG)
            with self._runner.monitor(machine) as monitor:
                snapshots.delete(monitor, snapshots.SAVED_TAG, deadline)
        elif state is not MachineState.RUNNING:
            self._launch(machine.off(), deadline)

    def pause(self, name: str) -> None:
        """Halt the virtual CPU."""
        with self._monitor(name, "be paused") as monitor:
            monitor.execute("stop")

    def resume(self, name: str) -> None:
        """Let a paused machine go on."""
        with self._monitor(name, "be resumed") as monitor:
            monitor.execute("cont")

    def stop(self, name: str, deadline: Deadline) -> None:
        """Press the ACPI power button and wait until the guest has shut down.

        Raises `WaitTimeoutError` if it has not by the deadline, and `MachineStateError` if QEMU died.
        """
        machine, state = self._look(name)
        if state not in ON or machine.process is None:
            return
        if state is MachineState.PAUSED:
            self.resume(name)  # a guest that stands still could not react
        while not machine.process.wait(0):
            if deadline.expired:
                raise still_on(name, deadline)
            with suppress(DriverError, WaitTimeoutError), self._runner.monitor(machine) as monitor:
                monitor.execute("system_powerdown")
            machine.process.wait(min(_PRESS_AGAIN_S, deadline.remaining_s))
        if self._runner.state(machine) is MachineState.ABORTED:
            raise MachineStateError(
                f"machine {name!r}: QEMU was killed while the guest shut down", infrastructure=True
            )
        self._ended(machine)

    def power_down(self, name: str) -> None:
        """Cut the power, or drop the saved state. The disk keeps what the guest had written to it."""
        machine = self._store.load(name)
        self._runner.quit(machine)
        self._drop_saved(machine)
        self._ended(machine)

    def save_state(self, name: str, deadline: Deadline) -> None:
        """Keep memory and devices in the machine's disk file and power off."""
        machine, state = self._look(name)
        if state is MachineState.SAVED:
            return
        with self._monitor(name, "be saved") as monitor:
            monitor.execute("stop")
            try:
                # One may be left from a process that was killed in the middle of this.
                if snapshots.SAVED_TAG in snapshots.live_tags(monitor):
                    snapshots.delete(monitor, snapshots.SAVED_TAG, deadline)
                snapshots.save(monitor, snapshots.SAVED_TAG, deadline)
            except BaseException:
                if state is MachineState.RUNNING:
                    monitor.execute("cont")
                raise
        self._runner.quit(machine)
        self._store.save(machine.off(saved=True))

    def _destroy(self, name: str) -> None:
        """Kill QEMU and remove the machine's folder; a machine that is not there is fine."""
        try:
            folder = self._store.folder(name)
        except MachineNotFoundError:
            return
        if not folder.exists():
            self._runner.forget(name)
            return
        try:
            machine = self._store.load(name)
        except DriverError:  # half-created, or its record is damaged
            machine = None
        processes = [machine.process] if machine and machine.process else []
        if machine is None or machine.starting:
            processes += running_in(folder.resolve())
        for process in processes:
            if not process.kill(_DESTROY_TIMEOUT_S):
                raise DestroyError(f"machine {name!r}: QEMU (process {process.pid}) does not end")
        self._runner.forget(name)
        self._store.remove(name)

    def state(self, name: str) -> MachineState:
        """The state now."""
        return self._look(name)[1]

    def standstill(self, name: str) -> str:
        """QEMU halts a machine whose disk file cannot grow, as the store's file system is full."""
        with self._runner.monitor(self._store.load(name)) as monitor:
            if monitor.execute("query-status")["status"] != "io-error":
                return ""
        return no_space_left(self._store.folder(name))

    def machines(self) -> list[MachineInfo]:
        """All machines in the store, oldest first. One that is half-created shows without an image."""
        found = []
        for name in self._store.names():
            try:
                found.append(listing.info(*self._look(name)))
            except DriverError:
                with suppress(FileNotFoundError):  # it has just been destroyed
                    found.append(MachineInfo.half_made(self._store.folder(name)))
        return sorted(found, key=lambda info: info.created)

    # --- machines frozen with their memory ---------------------------------------------------------

    def freezing_key(self, spec: MachineSpec) -> str:
        """A digest of QEMU's version, its command line and the image's files."""
        there = self._opened()
        check_readable(spec.image)
        firmware = host.find_efi_firmware().code if spec.firmware == "efi" else None
        qemu = there.programs
        return frozen.key(spec, qemu.system, qemu.version, there.accel.name, self.settings.cpu, firmware)

    def freeze(self, name: str, deadline: Deadline) -> None:
        """Keep memory and disk file themselves; QEMU writes out only the devices' state."""
        machine, state = self._look(name)
        target = machine.spec.freeze_to
        if state is not MachineState.RUNNING or target is None:
            raise wrong_state(name, state, "be frozen")
        folder = self._store.folder(name)
        with self._runner.monitor(machine) as monitor:
            frozen.freeze(monitor, machine, target, deadline)
        self._runner.quit(machine)
        disk = frozen.take_over(folder, target, machine.spec.firmware == "efi")
        self._disks().create_empty_overlay(disk, "qcow2", target / frozen.OVERLAY)
        self._store.remove(name)

    def lateness_s(self, name: str) -> float | None:
        """For how many seconds the guest stood still before it last went on, frozen or in a snapshot."""
        return self._store.load(name).late_s

    # --- reaching the guest ------------------------------------------------------------------------

    def endpoint(self, name: str, deadline: Deadline) -> Endpoint:
        """The loopback port that QEMU chose for the guest's port 22."""
        machine, state = self._look(name)
        endpoint = listing.info(machine, state).endpoint
        if endpoint is None:
            raise wrong_state(name, state, "be reached")
        return endpoint

    def forward(self, name: str, guest_port: int) -> Endpoint:
        """Open a way from a free loopback port to a TCP port of the running guest."""
        with self._monitor(name, "have a port forwarded") as monitor:
            return Endpoint(nat.LOOPBACK, nat.add_forward(monitor, guest_port))

    # --- looking in, typing ------------------------------------------------------------------------

    def console(self, name: str) -> str:
        """All that the guest wrote to its first serial port since the machine was created."""
        folder = self._store.folder(name)
        try:
            return (folder / record.CONSOLE).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            self._store.load(name)
            return ""

    def screenshot(self, name: str, path: Path) -> None:
        """Write the machine's screen to ``path`` as PNG."""
        with self._monitor(name, "show its screen") as monitor:
            monitor.execute("screendump", {"filename": record.SCREEN, "format": "png"})
        with writing_to(path):
            shutil.move(self._store.folder(name) / record.SCREEN, path)

    def send_keys(self, name: str, strokes: Sequence[Stroke]) -> None:
        """Press and release keys on the machine's keyboard, in order; returns after the last release."""
        # QEMU drops the keys for a machine that is paused.
        with self._monitor(name, "be typed to", states=(MachineState.RUNNING,)) as monitor:
            for stroke in strokes:
                if stroke.keys:
                    keys = [{"type": "qcode", "data": key} for key in stroke.keys]
                    monitor.execute("send-key", {"keys": keys, "hold-time": _KEY_HOLD_MS})
                # QEMU queues each press and release with a hold after it, and does not wait for them.
                time.sleep(2 * len(stroke.keys) * _KEY_HOLD_MS / 1000 + stroke.pause_s)

    # --- snapshots ---------------------------------------------------------------------------------

    def take_snapshot(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Keep disk, memory and devices under a name that is not taken yet; the machine goes on."""
        machine, state = self._look(name)
        check_snapshot_name(snapshot, self._snapshots(machine, state), name)
        if state in ON:
            mode = Mode.RUNNING if state is MachineState.RUNNING else Mode.PAUSED
            tag = Snapshot(snapshot, mode).tag
            with self._runner.monitor(machine) as monitor:
                snapshots.save(monitor, tag, deadline)
                halted = {**machine.halted, tag: monitor.halted}
            self._store.save(replace(machine, halted=halted))
        elif state is MachineState.SAVED:
            raise wrong_state(name, state, "have a snapshot taken: start it, or power it down")
        else:
            self._disks().create_snapshot(self._disk(name), Snapshot(snapshot, Mode.OFF).tag)

    def revert(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Go back to a snapshot. Connections into the guest do not survive it; ways into it do.

        Where the machine is off, or the snapshot is without memory, even the endpoint changes.
        """
        machine, state = self._look(name)
        target = find_snapshot(snapshot, self._snapshots(machine, state), name)
        if state in ON and target.has_memory:
            self._revert_live(machine, target, state, deadline)
            return
        self._runner.quit(machine)
        self._drop_saved(machine)
        machine = self._ended(machine)
        if target.has_memory:
            self._launch(machine, deadline, load=target.tag, halted=target.mode is Mode.PAUSED)
        else:
            self._disks().apply_snapshot(self._disk(name), target.tag)

    def snapshots(self, name: str) -> list[str]:
        """Names of the machine's snapshots, oldest first."""
        return list(self._snapshots(*self._look(name)))

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Forget a snapshot; one that is not there is fine."""
        machine, state = self._look(name)
        target = self._snapshots(machine, state).get(snapshot)
        if target is None:
            return
        if state in ON:
            with self._runner.monitor(machine) as monitor:
                snapshots.delete(monitor, target.tag, Deadline(_DELETE_TIMEOUT_S))
        else:
            self._disks().delete_snapshot(self._disk(name), target.tag)

    # --- images ------------------------------------------------------------------------------------

    def check_image(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` for a disk that is none, `NotSupportedError` for missing firmware."""
        if image.firmware == "efi":
            host.find_efi_firmware()
        self._disks().check(image)

    # --- parts -------------------------------------------------------------------------------------

    def _opened(self) -> _Opened:
        self.open()
        assert self._open is not None
        return self._open

    def _disks(self) -> Disks:
        return Disks(self._opened().programs.image, self.settings.home, self._cache / "overlays")

    def _disk(self, name: str) -> Path:
        return self._store.folder(name) / record.DISK

    def _look(self, name: str) -> tuple[Record, MachineState]:
        machine = self._store.load(name)
        return machine, self._runner.state(machine)

    @contextmanager
    def _monitor(self, name: str, purpose: str, states: Container[MachineState] = ON) -> Iterator[Monitor]:
        """A line to the machine, which has to be on."""
        machine, state = self._look(name)
        if state not in states:
            raise wrong_state(name, state, purpose)
        with self._runner.monitor(machine) as monitor:
            yield monitor

    def _launch(
        self, machine: Record, deadline: Deadline, *, load: str | None = None, halted: bool = False
    ) -> Record:
        there = self._opened()
        launch = Launch(
            there.programs.system,
            there.accel.name,
            there.aio,
            cpu=self.settings.cpu,
            firmware=host.find_efi_firmware().code if machine.spec.firmware == "efi" else None,
            load=load,
            halted=halted,
            gui=self.settings.gui,
        )
        return self._runner.launch(machine, launch, deadline)

    def _ended(self, machine: Record) -> Record:
        self._runner.forget(machine.spec.name)
        machine = machine.off()
        self._store.save(machine)
        return machine

    def _drop_saved(self, machine: Record) -> None:
        if machine.saved:
            self._disks().delete_snapshot(self._disk(machine.spec.name), snapshots.SAVED_TAG)

    def _snapshots(self, machine: Record, state: MachineState) -> dict[str, Snapshot]:
        if state in ON:
            with self._runner.monitor(machine) as monitor:
                return snapshots.parse_tags(snapshots.live_tags(monitor))
        return snapshots.parse_tags(self._disks().snapshot_tags(self._disk(machine.spec.name)))

    def _revert_live(
        self, machine: Record, target: Snapshot, state: MachineState, deadline: Deadline
    ) -> None:
        with self._runner.monitor(machine) as monitor:
            monitor.execute("stop")
            try:
                snapshots.load(monitor, target.tag, deadline)
            except BaseException:
                if state is MachineState.RUNNING:
                    monitor.execute("cont")
                raise
            resumed = monitor.go_on() if target.mode is Mode.RUNNING else time.time()
        self._store.save(replace(machine, late_s=resumed - machine.halted.get(target.tag, resumed)))


@dataclass(frozen=True)
class _Opened:
    """What was found when the driver was opened."""

    programs: host.Programs
    accel: Accel
    aio: Aio


def _check_supported(spec: MachineSpec) -> None:
    if spec.permanent:
        raise NotSupportedError(
            f"machine {spec.name!r}: the QEMU driver cannot run an image's own disk (permanent=True)",
            hint="without permanent, the machine runs on a copy-on-write overlay of the image",
        )
    if spec.network == "bridged":
        raise NotSupportedError(
            f"machine {spec.name!r}: the QEMU driver cannot bridge to the LAN, which needs root",
            hint="use the network mode local, nat or internal",
        )
    hardware = spec.hardware
    for field, said in {
        "controllers": hardware.controllers,
        "shared_folders": hardware.shared_folders,
        "boot_order with 'dvd' or 'floppy'": {"dvd", "floppy"}.intersection(hardware.boot_order),
    }.items():
        if said:
            raise NotSupportedError(
                f"machine {spec.name!r}: hardware {hardware.name!r}: the QEMU driver has no {field}",
                hint="the VirtualBox driver has",
            )
