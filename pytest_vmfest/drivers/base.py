"""What every hypervisor driver can do. This file is the whole truth about a driver.

Names of machines, networks and snapshots are the caller's. Calls on different machines may come from
different threads at once; calls on one machine come one after the other. All operations that change a
machine's state are idempotent: what is already so stays so. Errors: `DriverError` and its kin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pytest_vmfest.config import web_service_password
from pytest_vmfest.errors import DestroyError, MachineNotFoundError, NotSupportedError
from pytest_vmfest.ledger import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_vmfest.checks import Check
    from pytest_vmfest.config import Settings
    from pytest_vmfest.keyboard import Stroke
    from pytest_vmfest.remote import Remote
    from pytest_vmfest.specs import Endpoint, ImageModel, Login, MachineSpec
    from pytest_vmfest.waiting import Deadline


class MachineState(Enum):
    """The states that a machine can be in."""

    POWERED_OFF = "powered off"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"
    ABORTED = "aborted"
    """Its hypervisor process ended by itself or was killed; `Driver.start` boots it anew."""


ON = (MachineState.RUNNING, MachineState.PAUSED)
"""The states in which a machine has a process that does what it is told."""


class PropertyKind(Enum):
    """What a hypervisor may keep with a machine."""

    GUEST = "guest properties"
    """Seen by the guest's additions, which write some of their own."""
    EXTRA = "extra data"
    """For programs on the host, and for VirtualBox's own hidden settings (``VBoxInternal/…``)."""


@dataclass(frozen=True)
class DriverSettings:
    """What every driver is given.

    They belong to the process, not to its machines: one that is started again gets those of who starts it.
    """

    home: Path
    """The store's folder."""
    accel: str = "auto"
    """QEMU's accelerator: auto, kvm or tcg."""
    qemu: Path | None = None
    """The folder of QEMU's programs; None: they are found in PATH."""
    cpu: str | None = None
    """The CPU model of QEMU's machines; None: the driver's choice.

    Memory that was saved under one model need not load under another.
    """
    local_interface: str = "vboxnet0"
    """VirtualBox's host-only interface of machines in network mode local and internal."""
    bridged_interface: str | None = None
    """This host's interface that machines in network mode bridged share; None: the default route's."""
    gui: bool = False
    """Show the machines' screens in windows."""
    url: str | None = None
    """The web service of a hypervisor on another host; None: the hypervisor is on this one."""
    user: str = ""
    """Who logs on to the web service."""
    password: str = field(default="", repr=False)
    """The password for the web service."""

    def as_json(self) -> dict[str, str | bool | None]:
        """All but the password, as plain data."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "password"}
        return {name: str(value) if isinstance(value, Path) else value for name, value in data.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DriverSettings:
        """What `as_json` made; the password from the environment."""
        known = {field.name for field in fields(cls)}  # another version may have written others
        said = {name: value for name, value in data.items() if name in known}
        paths = {"home": Path(data["home"]), "qemu": Path(data["qemu"]) if data.get("qemu") else None}
        return cls(**{**said, **paths}, password=web_service_password())

    @classmethod
    def of(cls, settings: Settings, home: Path) -> DriverSettings:
        """What the user configured, as far as drivers are concerned; the password from the environment."""
        names = {field.name for field in fields(cls)} & {field.name for field in fields(settings)}
        said = {name: getattr(settings, name) for name in names}
        return cls(home, password=web_service_password(), **said)


@dataclass(frozen=True)
class MachineInfo:
    """One row of a listing. ``endpoint`` is where its SSH answers, when it runs."""

    name: str
    state: MachineState
    image: str
    memory_mib: int
    cpus: int
    tags: Mapping[str, str]
    created: float
    """Seconds since the epoch."""
    endpoint: Endpoint | None = None
    template: str = ""
    """The name of the folder that it went on from; empty if it booted."""

    @classmethod
    def half_made(cls, folder: Path) -> MachineInfo:
        """The row of a machine that has a folder, but no record to be read: it can only be destroyed.

        Raises `FileNotFoundError` if it has just been destroyed.
        """
        created = folder.stat().st_mtime
        return cls(folder.name, MachineState.ABORTED, "", memory_mib=0, cpus=0, tags={}, created=created)


class Owner(Protocol):
    """Who owns what a driver makes."""

    @property
    def tags(self) -> Mapping[str, str]:
        """What each machine is to bear."""

    def make_room(self, sizes: Mapping[str, int], patience_s: float, *, spare: bool = False) -> None:
        """Machines with so many MiB of memory are about to be made; a ``spare`` has only what is free."""

    def give_back(self, names: Iterable[str]) -> None:
        """Of these machines, those that were not even begun will not be made."""

    def will_make(self, kind: Kind, name: str, memory_mib: int = 0) -> bool:
        """It is about to be made; whether nothing of that name was made before."""

    def is_gone(self, kind: Kind, name: str) -> None:
        """It was removed."""


class Driver(ABC):
    """An adapter to one hypervisor.

    What is public and not abstract is the same for all drivers; each fills in the rest.
    """

    name: ClassVar[str]
    outlives_us: ClassVar[bool] = True
    """Whether machines go on when the process that made them has ended."""
    freezes: ClassVar[bool] = False
    """Whether it can freeze machines with their memory."""
    takes_url: ClassVar[bool] = False
    """Whether it can use a hypervisor behind a web service."""

    chosen_because: str = ""
    """Why ``auto`` came to this driver; empty if it was asked for by name."""

    def __init__(self, settings: DriverSettings) -> None:
        """Remember the settings. Touches neither disk nor hypervisor."""
        self.settings = settings
        self.owner: Owner | None = None

    # --- the driver itself -------------------------------------------------------------------------

    @classmethod
    def why_not(cls, settings: DriverSettings) -> str:
        """Why this driver cannot be used here, found out quickly; empty if nothing speaks against it."""
        return ""

    @abstractmethod
    def open(self) -> None:
        """Make ready for use; `DriverUnavailableError` says what is missing and what to type."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what `open` took. Machines are left as they are."""

    @abstractmethod
    def describe(self) -> str:
        """Name, version and accelerator in one line; never waits long, never raises."""

    @abstractmethod
    def check(self) -> list[Check]:
        """What works here, what does not and why: the driver's part of ``vmfest doctor``."""

    # --- private networks --------------------------------------------------------------------------

    def create_network(self, name: str) -> None:
        """Create a private network that only machines with a NIC on it can see."""
        if self.owner:
            self.owner.will_make(Kind.NETWORK, name)
        self._create_network(name)

    def remove_network(self, name: str) -> None:
        """Remove a private network; one that is not there is fine."""
        self._remove_network(name)
        if self.owner:
            self.owner.is_gone(Kind.NETWORK, name)

    @abstractmethod
    def _create_network(self, name: str) -> None: ...

    @abstractmethod
    def _remove_network(self, name: str) -> None: ...

    # --- machines ----------------------------------------------------------------------------------

    def create(self, spec: MachineSpec) -> None:
        """Create a powered-off machine on a differencing image. On failure nothing is left of it."""
        if self.owner is None:
            self._create(spec)
            return
        is_new = self.owner.will_make(Kind.MACHINE, spec.name, spec.hardware.memory_mib)
        try:
            self._create(replace(spec, tags={**spec.tags, **self.owner.tags}))
        except Exception as error:
            # Nothing is left of it, unless cleaning up failed as well; or it is there, and is another's.
            cleaned_up = not isinstance(error, DestroyError) and not getattr(error, "__notes__", ())
            if is_new and cleaned_up:
                self.owner.is_gone(Kind.MACHINE, spec.name)
            raise

    @abstractmethod
    def _create(self, spec: MachineSpec) -> None: ...

    @abstractmethod
    def start(self, name: str, deadline: Deadline) -> None:
        """Power on, or go on from the saved state; returns when the virtual CPU runs."""

    @abstractmethod
    def pause(self, name: str) -> None:
        """Halt the virtual CPU."""

    @abstractmethod
    def resume(self, name: str) -> None:
        """Let a paused machine go on."""

    @abstractmethod
    def stop(self, name: str, deadline: Deadline) -> None:
        """Ask the guest to shut down (ACPI power button) and wait until it has.

        A paused guest goes on first; a machine that is off or saved stays so. Raises `WaitTimeoutError`.
        """

    @abstractmethod
    def power_down(self, name: str) -> None:
        """Cut the power, or drop the saved state. The disk keeps what the guest had written to it."""

    @abstractmethod
    def save_state(self, name: str, deadline: Deadline) -> None:
        """Keep memory and devices on disk and power off; `start` goes on from there."""

    def destroy(self, name: str) -> None:
        """Remove every trace of the machine, in whatever state it is; one that is not there is fine."""
        self._destroy(name)
        if self.owner:
            self.owner.is_gone(Kind.MACHINE, name)

    @abstractmethod
    def _destroy(self, name: str) -> None: ...

    @abstractmethod
    def state(self, name: str) -> MachineState:
        """The state now; `MachineNotFoundError` if there is no such machine."""

    def standstill(self, name: str) -> str:
        """Why the hypervisor has halted the machine by itself, and what to do; empty if it has not."""
        return ""

    @abstractmethod
    def machines(self) -> list[MachineInfo]:
        """All machines of this driver and store, also those of other processes, oldest first."""

    def find(self, names: Sequence[str]) -> list[MachineInfo]:
        """The machines called ``names``, each once.

        Raises `MachineNotFoundError` that tells all that are missing and all that there are.
        """
        infos = {info.name: info for info in self.machines()}
        missing = [name for name in names if name not in infos]
        if missing:
            raise MachineNotFoundError(
                f"there is no machine {', '.join(missing)}", hint=f"there are: {', '.join(infos) or 'none'}"
            )
        return [infos[name] for name in dict.fromkeys(names)]

    # --- machines frozen with their memory ---------------------------------------------------------

    def freezing_key(self, spec: MachineSpec) -> str:
        """What a frozen machine of this spec depends on: it can be gone on from where this is the same.

        `NotSupportedError` says why such machines cannot be frozen.
        """
        raise NotSupportedError(f"the {self.name} driver cannot freeze machines with their memory")

    def frozen_mib(self, spec: MachineSpec) -> int:
        """What a frozen machine of this spec may add to the store, in MiB: all of its memory.

        What its guest writes to the disk before it is frozen comes on top.
        """
        return spec.hardware.memory_mib

    def freeze(self, name: str, deadline: Deadline) -> None:
        """Keep the running machine in the folder that it was made for (`MachineSpec.freeze_to`), and end it.

        Any number of others can go on from there, at once and later, as long as nobody writes to that folder:
        they are created with `MachineSpec.thaw_from`, and `start` resumes them. The machine itself is gone;
        its owner still has its name and memory, which the first of them may take.
        """
        raise NotSupportedError(f"the {self.name} driver cannot freeze machines with their memory")

    def move_in(self, name: str, run: Callable[[str, bytes], object]) -> bool:
        """Make the guest of a machine that has just gone on, for the first time, fit for its own network.

        ``run`` runs shell text as root in it, with an input. Returns whether that was needed: then the
        guest's network cards have their own addresses now, and connections to it are to be made anew.
        """
        return False

    def lateness_s(self, name: str) -> float | None:
        """For how many seconds the guest stood still before it last went on: its clock is late by that.

        None if that is not known.
        """
        return None

    # --- reaching the guest ------------------------------------------------------------------------

    @abstractmethod
    def endpoint(self, name: str, deadline: Deadline) -> Endpoint:
        """Where the guest's port 22 is reached from this host. A new start may change it."""

    @abstractmethod
    def forward(self, name: str, guest_port: int) -> Endpoint:
        """A way from this host to a TCP port of the running guest: a free loopback port, or its own address.

        Asked twice for one port, it answers with the way that is open already.
        """

    def remote(
        self, name: str, login: Login, deadline: Deadline, *, watch: Callable[[], None] | None = None
    ) -> Remote | None:
        """A connection of the driver's own, for guests that need no SSH; None means: use SSH.

        ``watch`` is called while it is waited for, and may raise to end that.
        """
        return None

    # --- looking in, typing ------------------------------------------------------------------------

    @abstractmethod
    def console(self, name: str) -> str:
        """All that the guest wrote to its first serial port since the machine was created.

        That can be asked at any time, by any thread.
        """

    @abstractmethod
    def screenshot(self, name: str, path: Path) -> None:
        """Write the running machine's screen to ``path`` as PNG."""

    @abstractmethod
    def send_keys(self, name: str, strokes: Sequence[Stroke]) -> None:
        """Press and release keys on the running machine's keyboard, in order."""

    # --- snapshots, memory included when the machine runs -----------------------------------------

    @abstractmethod
    def take_snapshot(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Keep disk, memory and devices under a name that is not taken yet; the machine goes on."""

    @abstractmethod
    def revert(self, name: str, snapshot: str, deadline: Deadline) -> None:
        """Go back to a snapshot; afterwards the machine runs if it ran when it was taken.

        Connections into the guest break. If the machine was off, its endpoint is another one.
        """

    @abstractmethod
    def snapshots(self, name: str) -> list[str]:
        """Names of the machine's snapshots, oldest first."""

    @abstractmethod
    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Forget a snapshot; one that is not there is fine.

        A hypervisor may refuse to, as long as several others stand on it.
        """

    # --- what is kept with a machine ---------------------------------------------------------------

    def get_property(self, name: str, kind: PropertyKind, key: str) -> str:
        """A value that the hypervisor keeps with the machine under ``key``; empty if there is none."""
        raise NotSupportedError(f"the {self.name} driver keeps no {kind.value} with machines")

    def set_property(self, name: str, kind: PropertyKind, key: str, value: str) -> None:
        """Keep a value with the machine; an empty one removes it."""
        raise NotSupportedError(f"the {self.name} driver keeps no {kind.value} with machines")

    # --- images ------------------------------------------------------------------------------------

    def own_image(self, selector: object) -> ImageModel | None:
        """A model that the driver brings itself, whatever is asked for; None means: use the store."""
        return None

    def check_image(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` or `NotSupportedError` if this driver cannot run the image."""
        return
