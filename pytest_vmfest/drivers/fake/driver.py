"""The fake driver: the contract of `Driver` kept without a hypervisor."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.checks import Check
from pytest_vmfest.drivers.base import ON, Driver, DriverSettings, MachineInfo, MachineState
from pytest_vmfest.drivers.fake.machine import FakeMachine
from pytest_vmfest.drivers.fake.remote import FakeRemote
from pytest_vmfest.drivers.fake.world import FakeFault, Responder, world_of
from pytest_vmfest.drivers.refusals import (
    check_snapshot_name,
    find_snapshot,
    no_machine,
    no_network,
    still_on,
    wrong_state,
)
from pytest_vmfest.errors import (
    ConnectionLostError,
    DestroyError,
    DriverError,
    ImageInvalidError,
    MachineExistsError,
    NotSupportedError,
    StoreError,
    WaitTimeoutError,
)
from pytest_vmfest.specs import Endpoint, ImageModel, check_label
from pytest_vmfest.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_vmfest.drivers.fake.world import FakeReply
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.specs import Login, MachineSpec
    from pytest_vmfest.waiting import Deadline

_LOOPBACK = "127.0.0.1"
_SECTOR_BYTES = 512
# The disks of images that the driver brings itself; nothing is there.
_NOWHERE = Path("/nonexistent/fake-images")


class FakeDriver(Driver):
    """Machines made of memory. Two drivers with the same store see the same machines, in one process.

    It has every image that it is asked for, so no store is touched. Methods without words here do what
    `Driver` says, at once.
    """

    name = "fake"
    outlives_us = False

    def __init__(self, settings: DriverSettings) -> None:
        """Join the world of the store's folder."""
        super().__init__(settings)
        self._world = world_of(settings.home)

    def respond(self, pattern: str, reply: FakeReply, *, machine: str = "*") -> None:
        r"""Let guests answer a command.

        ``pattern`` is a regular expression for one simple command, its words joined by blanks; a script
        that is beyond the fake shell is matched as a whole. ``reply`` is standard output, an exit status, a
        `Completed`, or a function that is given a `FakeCall` and returns one of these. ``machine`` is a
        shell pattern for the names of the machines. Of several that match, the one given last answers.

        >>> from pytest_vmfest import Server
        >>> server = Server(driver="fake")
        >>> server.driver.respond(r"systemctl is-active (\S+)", lambda call: f"{call.match[1]} is active\n")
        >>> with server.launch(image="tiny") as node:
        ...     node.check_output("systemctl is-active cron")
        'cron is active'
        """
        self._world.responders.append(Responder(re.compile(pattern), reply, machine))

    def inject(self, fault: FakeFault, *, machine: str = "*", times: int | None = None) -> None:
        """Let something go wrong, with the machines whose names match; ``times`` times, or always.

        >>> from pytest_vmfest import Server
        >>> from pytest_vmfest.drivers.fake import FakeFault
        >>> server = Server(driver="fake")
        >>> server.driver.inject(FakeFault.START_FAILS, machine="web-*", times=1)
        >>> server.launch_group({"web": 2}, image="tiny")
        Traceback (most recent call last):
        pytest_vmfest.errors.GroupStartError: ...
        >>> server.driver.heal()
        """
        self._world.inject(fault, machine, times)

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._world.heal()

    def abort(self, name: str) -> None:
        """End a machine as if its hypervisor process had been killed."""
        with self._machine(name) as machine:
            if machine.state in ON:
                machine.end(MachineState.ABORTED)

    def open(self) -> None:
        """There is nothing to make ready."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def describe(self) -> str:
        return "fake (in memory)"

    def check(self) -> list[Check]:
        return [Check("fake", True, "machines in memory")]

    def _create_network(self, name: str) -> None:
        self._world.networks.add(check_label(name, "network name"))

    def _remove_network(self, name: str) -> None:
        self._world.networks.discard(check_label(name, "network name"))

    def _create(self, spec: MachineSpec) -> None:
        if spec.permanent or spec.network == "bridged":
            what = "permanent=True" if spec.permanent else "the network mode bridged"
            raise NotSupportedError(f"machine {spec.name!r}: the fake driver does not know {what}")
        self.check_image(spec.image)
        with self._world.lock:
            if spec.name in self._world.machines:
                raise MachineExistsError(f"a machine named {spec.name!r} exists already")
            if self._world.strikes(FakeFault.CREATE_FAILS, spec.name):
                raise DriverError(f"machine {spec.name!r} cannot be created (injected fault)")
            self._world.machines[spec.name] = FakeMachine(spec, self._world)

    def start(self, name: str, deadline: Deadline) -> None:
        with self._machine(name) as machine:
            if machine.state is MachineState.RUNNING:
                return
            if self._world.strikes(FakeFault.START_FAILS, name):
                raise DriverError(f"machine {name!r} does not start (injected fault)")
            for nic in machine.spec.nics:
                if nic.network not in self._world.networks:
                    raise no_network(nic.network)
            if machine.state is MachineState.PAUSED:
                machine.state = MachineState.RUNNING
            elif machine.state is MachineState.SAVED:
                machine.go_on()
            else:
                machine.boot()

    def pause(self, name: str) -> None:
        with self._running(name, "be paused") as machine:
            machine.state = MachineState.PAUSED

    def resume(self, name: str) -> None:
        with self._running(name, "be resumed") as machine:
            machine.state = MachineState.RUNNING

    def stop(self, name: str, deadline: Deadline) -> None:
        with self._machine(name) as machine:
            if machine.state not in ON:
                return
            machine.state = MachineState.RUNNING
            heeds = not self._world.strikes(FakeFault.IGNORES_STOP, name)
            if heeds:
                machine.end(MachineState.POWERED_OFF)
        if not heeds and _stays_on(machine, deadline):
            raise still_on(name, deadline)

    def power_down(self, name: str) -> None:
        with self._machine(name) as machine:
            machine.end(MachineState.POWERED_OFF)

    def save_state(self, name: str, deadline: Deadline) -> None:
        with self._machine(name) as machine:
            if machine.state is MachineState.SAVED:
                return
            if machine.state not in ON:
                raise wrong_state(name, machine.state, "be saved")
            machine.end(MachineState.SAVED)

    def _destroy(self, name: str) -> None:
        with self._world.lock:
            if name not in self._world.machines:
                return
            if self._world.strikes(FakeFault.DESTROY_FAILS, name):
                raise DestroyError(f"machine {name!r} cannot be destroyed (injected fault)")
            self._world.machines.pop(name).end(MachineState.POWERED_OFF)

    def state(self, name: str) -> MachineState:
        with self._machine(name) as machine:
            return machine.state

    def machines(self) -> list[MachineInfo]:
        with self._world.lock:
            return [machine.info() for machine in self._world.machines.values()]

    def endpoint(self, name: str, deadline: Deadline) -> Endpoint:
        """An address with a port of the machine's own; nothing listens there."""
        return self.forward(name, 22)

    def forward(self, name: str, guest_port: int) -> Endpoint:
        """An address with another port for each guest port; nothing listens there."""
        with self._running(name, "be reached") as machine:
            port = machine.ports.setdefault(guest_port, self._world.free_port())
            return Endpoint(_LOOPBACK, port)

    def remote(
        self, name: str, login: Login, deadline: Deadline, *, watch: Callable[[], None] | None = None
    ) -> FakeRemote:
        with self._running(name, "be connected to") as machine:
            if self._world.strikes(FakeFault.DIES, name):
                machine.end(MachineState.ABORTED)
                raise ConnectionLostError(f"machine {name!r} is aborted (injected fault)")
            if self._world.strikes(FakeFault.PANICS, name):
                machine.console += "Kernel panic - not syncing: injected fault\n"
                raise ConnectionLostError("the guest's kernel panicked: injected fault")
            if not self._world.strikes(FakeFault.UNREACHABLE, name):
                return FakeRemote(machine, login)
        if not _stays_on(machine, deadline, watch):
            raise ConnectionLostError(f"machine {name!r} is {machine.state.value}")
        limit = f"no answer within {deadline.timeout_s:g} s"
        raise WaitTimeoutError(f"machine {name!r}: {limit} (injected fault)")

    def console(self, name: str) -> str:
        """A few lines for each boot, and what was typed or written to the serial port."""
        with self._machine(name) as machine:
            return machine.console

    def screenshot(self, name: str, path: Path) -> None:
        """A blue screen."""
        with self._running(name, "show its screen") as machine:
            try:
                machine.draw(path)
            except OSError as error:
                raise StoreError(f"cannot write to {path}: {error.strerror}") from error

    def send_keys(self, name: str, strokes: Sequence[Stroke]) -> None:
        """Type; the guest echoes each line on its console."""
        for stroke in strokes:
            with self._machine(name) as machine:
                if machine.state is not MachineState.RUNNING:
                    raise wrong_state(name, machine.state, "be typed to")
                machine.type([stroke])
            time.sleep(stroke.pause_s)

    def take_snapshot(self, name: str, snapshot: str, deadline: Deadline) -> None:
        with self._machine(name) as machine:
            check_snapshot_name(snapshot, machine.snapshots, name)
            if machine.state is MachineState.SAVED:
                raise wrong_state(name, machine.state, "have a snapshot taken: start it, or power it down")
            machine.take_snapshot(snapshot)

    def revert(self, name: str, snapshot: str, deadline: Deadline) -> None:
        with self._machine(name) as machine:
            machine.revert(find_snapshot(snapshot, machine.snapshots, name))

    def snapshots(self, name: str) -> list[str]:
        with self._machine(name) as machine:
            return list(machine.snapshots)

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        with self._machine(name) as machine:
            machine.snapshots.pop(snapshot, None)

    def own_image(self, selector: object) -> ImageModel | None:
        """A model for any name or template; for a model, path or URL: None."""
        if not isinstance(selector, str | dict):
            return None
        name = selector if isinstance(selector, str) else str(selector.get("os_family", "fake"))
        asked: Mapping[str, Any] = selector if isinstance(selector, dict) else {}
        keys = ("os_family", "os_version", "packager")
        facts: dict[str, Any] = {key: str(asked[key]) for key in keys if asked.get(key)}
        return ImageModel(name, _NOWHERE / name, "raw", description="in memory", **facts)

    def check_image(self, image: ImageModel) -> None:
        """Take any model of its own; for others there must be a disk file that could be one."""
        if image.disk.is_relative_to(_NOWHERE):
            return
        try:
            with image.disk.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise ImageInvalidError(
                f"image {image.name!r}: {image.disk} cannot be read: {error.strerror}"
            ) from None
        if size < _SECTOR_BYTES or size % _SECTOR_BYTES:
            raise ImageInvalidError(f"image {image.name!r}: {image.disk} is no disk")

    @contextmanager
    def _machine(self, name: str) -> Iterator[FakeMachine]:
        with self._world.lock:
            if name not in self._world.machines:
                raise no_machine(name)
            yield self._world.machines[name]

    @contextmanager
    def _running(self, name: str, purpose: str) -> Iterator[FakeMachine]:
        with self._machine(name) as machine:
            if machine.state not in ON:
                raise wrong_state(name, machine.state, purpose)
            yield machine


def _stays_on(machine: FakeMachine, deadline: Deadline, watch: Callable[[], None] | None = None) -> bool:
    """Whether the machine is still on at the deadline; returns as soon as it is not."""
    with suppress(WaitTimeoutError):
        wait_for(lambda: machine.state not in ON, deadline, what="its end", interval_s=0.01, watch=watch)
    return machine.state in ON
