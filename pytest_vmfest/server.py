"""The server: one hypervisor with its image store, where machines are made and found."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.config import store_home
from pytest_vmfest.drivers import driver_class, load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.errors import ConfigurationError, all_or_raise, clean_up_after
from pytest_vmfest.group import NodeGroup
from pytest_vmfest.images.store import ImageStore
from pytest_vmfest.instance import Instance
from pytest_vmfest.launcher import Launcher
from pytest_vmfest.ownership import Ownership, SharedOwnership
from pytest_vmfest.planning import fresh_name, plan_group, plan_machine, plan_node
from pytest_vmfest.progress import silent
from pytest_vmfest.request import VmRequest
from pytest_vmfest.signals import held_back
from pytest_vmfest.specs import ImageModel, check_label
from pytest_vmfest.ssh import keys
from pytest_vmfest.warm.templates import Templates

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from pytest_vmfest.config import Settings
    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.node import Node
    from pytest_vmfest.processes import Process
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import HardwareModel, NetworkMode
    from pytest_vmfest.waiting import Cancellation

BOOT_TIMEOUT_S = 300.0


class Server:
    """A hypervisor and its image store: vmfest's API in Python, on which the plugin is written.

    >>> from pytest_vmfest import Server
    >>> with Server(driver="fake") as server:
    ...     machine = server.instance("backup-machine", "tiny", "micro")
    ...     machine.start()
    ...     [found.name for found in server.machines()]
    ...     machine.destroy()
    ['backup-machine']

    ``driver`` is auto, virtualbox, qemu or fake; ``url``, ``user`` and ``password`` are for VirtualBox behind
    its web service, which must see ``home`` under the same path; ``home`` is the store's folder (default:
    VMFEST_HOME, else the user's cache folder); ``accel`` auto, kvm or tcg; ``qemu`` the folder of QEMU's
    programs (default: PATH); ``cpu`` the CPU model of QEMU's machines (default: the driver's choice);
    ``local_interface`` and ``bridged_interface`` VirtualBox's networks (see `DriverSettings`); ``gui`` shows
    the machines' screens in windows; ``boot_timeout_s`` the seconds from a machine's creation to its first
    command, and ``boot_retries`` how often a node's machine that does not come up is replaced by a fresh one.
    With ``cold`` nodes boot, also where they could resume from a template.
    Nothing is touched before the first use.
    """

    def __init__(
        self,
        driver: str = "auto",
        url: str | None = None,
        *,
        home: str | os.PathLike[str] | None = None,
        accel: str = "auto",
        qemu: str | os.PathLike[str] | None = None,
        cpu: str | None = None,
        local_interface: str = "vboxnet0",
        bridged_interface: str | None = None,
        gui: bool = False,
        user: str = "",
        password: str = "",
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        boot_retries: int = 0,
        cold: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Remember where and how; `ConfigurationError`: unknown driver, or it takes no ``url``."""
        self.home = Path(home).absolute() if home is not None else store_home()
        self.boot_timeout_s = boot_timeout_s
        self.boot_retries = boot_retries
        self._cold = cold
        self._progress = progress
        programs = Path(qemu).expanduser().absolute() if qemu is not None else None
        self._settings = DriverSettings(
            self.home,
            accel=accel,
            qemu=programs,
            cpu=cpu,
            local_interface=local_interface,
            bridged_interface=bridged_interface,
            gui=gui,
            url=url,
            user=user,
            password=password,
        )
        self._name = driver
        if driver != "auto" and not driver_class(driver).takes_url and url is not None:
            raise ConfigurationError(f"driver {driver!r} is local and takes no url ({url!r})")
        self._opened = False
        self.on_made: Callable[[Node | Instance], None] = lambda made: None
        """Told what `instance`, `launch` and `launch_group` have made."""
        self.when_full: Callable[[], bool] = lambda: False
        """Called when there is no memory for a machine: removes what can be spared; whether it did."""
        self._ownership: Callable[[Driver], Ownership] | None = None

    @classmethod
    def configured(
        cls,
        settings: Settings,
        *,
        driver: str | None = None,
        home: Path | None = None,
        progress: Progress = silent,
    ) -> Server:
        """The server that the user configured; ``driver`` is another one, if a test asks for it.

        Raises `ConfigurationError`.
        """
        said = DriverSettings.of(settings, home or store_home())
        how = {field.name: getattr(said, field.name) for field in fields(said)}
        # A test may ask for a local driver by name though the others go to another host.
        if driver not in (None, "auto", settings.driver) and not driver_class(driver).takes_url:
            how["url"] = None
        return cls(
            driver or settings.driver,
            boot_timeout_s=settings.boot_timeout,
            boot_retries=settings.boot_retries,
            cold=settings.cold,
            progress=progress,
            **how,
        )

    def __repr__(self) -> str:
        """``<Server qemu in ~/.cache/vmfest>``."""
        return f"<Server {self._name} in {self.home}>"

    def __enter__(self) -> Server:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the server; its machines stay."""
        self.close()

    def close(self) -> None:
        """Let go of the hypervisor. Machines are left as they are, unless they are this process's own.

        Raises `DestroyError` that tells which of those are still there.
        """
        if self._opened:
            try:
                if isinstance(owner := self._driver.owner, Ownership):
                    owner.settle()
            finally:
                self._driver.close()
                self._opened = False

    def own(self, tags: Mapping[str, str], *, parent: Process | None = None) -> None:
        """From now on, what is made by this server belongs to this process, and bears ``tags``.

        It is gone when the server is closed or the process has ended, whatever way; see `keep` and `release`.
        When ``parent`` has ended, this process is ended too. Behind a web service, the password must be in
        the environment (VMFEST_PASSWORD).

        >>> from pytest_vmfest import Server
        >>> with Server(driver="fake") as server:
        ...     server.own({"job": "nightly"})
        ...     _ = server.instance("never-forgotten", "tiny")
        >>> server.machines()
        []
        """
        self._owned_by(partial(Ownership, tags=tags, parent=parent, progress=self._progress))

    def own_for(self, controller: Process, tags: Mapping[str, str]) -> None:
        """From now on, what is made belongs to ``controller``, and is for all who work for it."""
        self._owned_by(partial(SharedOwnership, tags=tags, controller=controller, progress=self._progress))

    def _owned_by(self, ownership: Callable[[Driver], Ownership]) -> None:
        self._ownership = ownership
        if "_driver" in self.__dict__:
            if isinstance(owner := self._driver.owner, Ownership):
                owner.settle()
            self._driver.owner = ownership(self._driver)

    def keep(self, machine: str, for_s: float) -> None:
        """Let an own machine outlive this process for so many seconds; then ``vmfest gc`` removes it."""
        if isinstance(owner := self._driver.owner, Ownership):
            owner.keep(machine, for_s)

    def release(self, machine: str) -> None:
        """Own a machine no longer: it stays until somebody destroys it."""
        if isinstance(owner := self._driver.owner, Ownership):
            owner.release(machine)

    @cached_property
    def _driver(self) -> Driver:
        driver = load_driver(self._name, self._settings)
        if self._ownership is not None:
            owner = driver.owner = self._ownership(driver)
            owner.when_full = lambda: self.when_full()
        return driver

    def describe(self) -> str:
        """The driver with its version, and why ``auto`` came to it, in one line; never waits long."""
        because = self._driver.chosen_because
        return self._driver.describe() + (f", chosen by auto: {because}" if because else "")

    @property
    def driver(self) -> Driver:
        """The driver, opened on first use; `DriverUnavailableError` says what is missing."""
        if not self._opened:
            self._driver.open()
            self._opened = True
        return self._driver

    @cached_property
    def images(self) -> ImageStore:
        """The image store."""
        return ImageStore(
            self.home, identity=lambda: keys.ensure_identity(self.home / "keys"), progress=self._progress
        )

    def image(self, selector: str | os.PathLike[str] | Mapping[str, Any] | ImageModel) -> ImageModel:
        """The model for a name, path, URL or template, built or fetched if need be.

        Errors: those of `ImageStore.resolve`, and `DriverUnavailableError`: without a hypervisor there is no
        use in building or fetching anything.
        """
        if isinstance(selector, ImageModel):
            return selector
        return self.driver.own_image(selector) or self.images.resolve(selector)

    @cached_property
    def _templates(self) -> Templates | None:
        return None if self._cold else Templates(self.driver, self._progress)

    # --- machines ----------------------------------------------------------------------------------

    def instance(
        self,
        name: str,
        image: str | os.PathLike[str] | Mapping[str, Any] | ImageModel,
        hardware: str | HardwareModel | None = None,
        *,
        network: NetworkMode | None = None,
        permanent: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> Instance:
        """Create a powered-off machine that is a clone of ``image``; its name must be new.

        Errors: `ConfigurationError`, `ImageError`, `MachineExistsError`, `DriverError`.
        """
        check_label(name, "machine name")
        model = self.image(image)
        said = {"hardware": hardware, "network": network, "permanent": permanent}
        request = VmRequest.parse(said, where=f"machine {name!r}")
        self.driver.create(plan_machine(request, model, name, tags or {}))
        made = Instance(self.driver, name, lambda: model)
        self.on_made(made)
        return made

    def machines(self) -> list[Instance]:
        """All machines of this driver and store, also those of other processes, oldest first."""
        return [self._found(info.name, info.image) for info in self.driver.machines()]

    def find(self, name: str) -> Instance:
        """The machine called ``name``; `MachineNotFoundError` lists the names there are."""
        return self._found(name, self.driver.find([name])[0].image)

    def _found(self, name: str, image: str) -> Instance:
        return Instance(self.driver, name, lambda: self._driver.own_image(image) or self.images.get(image))

    # --- nodes -------------------------------------------------------------------------------------

    def launch(
        self,
        name: str = "vm",
        *,
        image: str | os.PathLike[str] | Mapping[str, Any] | ImageModel,
        hardware: str | HardwareModel | None = None,
        network: NetworkMode | None = None,
        init_script: str | os.PathLike[str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Node:
        """Create and boot one machine and wait for its SSH; the node's ``with`` block destroys it.

        ``name`` is the node's host name; its machine gets a name of its own. Raises `StartError`.
        """
        said = {"hardware": hardware, "network": network, "init_script": init_script}
        request = VmRequest.parse(said, where="launch")
        node = self.launch_request(request, self.image(image), name=name, tags=tags)
        self.on_made(node)
        return node

    def launch_group(
        self,
        nodes: int | Mapping[str, int],
        *,
        image: str | os.PathLike[str] | Mapping[str, Any] | ImageModel,
        hardware: str | HardwareModel | None = None,
        network: NetworkMode | None = None,
        init_script: str | os.PathLike[str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> NodeGroup:
        """Create and boot several machines on a private network of their own, all or none.

        ``nodes`` is a number, or numbers by role such as ``{"db": 1, "web": 2}``. The group's ``with`` block
        destroys it. Raises `GroupStartError` with every node's failure.
        """
        said = {"nodes": nodes, "hardware": hardware, "network": network, "init_script": init_script}
        request = VmRequest.parse(said, where="launch_group")
        group = self.launch_group_request(request, self.image(image), tags=tags)
        for node in group.values():
            self.on_made(node)
        return group

    def launch_request(
        self,
        request: VmRequest,
        model: ImageModel,
        *,
        name: str = "vm",
        tags: Mapping[str, str] | None = None,
        keep_failed: bool = False,
        machine: str | None = None,
        progress: Progress = silent,
        cancelled: Cancellation | None = None,
    ) -> Node:
        """`launch` for a validated request.

        ``machine`` is the machine's own name, new among all machines; ``progress`` is told the stages. With
        ``cancelled`` it waits for no memory (`WaitTimeoutError`), and is given up when that is set.
        """
        plan = plan_node(request, model, name, tags or {}, machine)
        return self._launcher(keep_failed, progress, cancelled).launch([plan])[0]

    @staticmethod
    def are_interchangeable(request: VmRequest, model: ImageModel) -> bool:
        """Whether there can be several machines of a request at the same time."""
        spec = plan_machine(request, model, "vm", {})
        hardware = spec.hardware
        fixed_ports = any(rule.host_port for rule in hardware.nat_rules)
        return not (spec.permanent or hardware.mac or fixed_ports or hardware.controllers)

    def has_room_for(self, request: VmRequest, model: ImageModel) -> bool:
        """Whether there is memory for a machine, as things are now, without making anybody wait."""
        owner = self.driver.owner
        spec = plan_machine(request, model, "vm", {})
        return not isinstance(owner, Ownership) or owner.has_room(spec.hardware.memory_mib)

    def launch_group_request(
        self,
        request: VmRequest,
        model: ImageModel,
        *,
        tags: Mapping[str, str] | None = None,
        keep_failed: bool = False,
    ) -> NodeGroup:
        """`launch_group` for a validated request."""
        network = fresh_name("net")
        plans = plan_group(request, model, network, tags or {})
        launcher = self._launcher(keep_failed, silent)
        try:
            self.driver.create_network(network)
            launched = launcher.launch(plans)
        except BaseException as error:
            if not getattr(error, "kept", ()):
                with held_back():
                    clean_up_after(error, lambda: self.driver.remove_network(network))
            raise
        return NodeGroup(
            launched,
            lambda: all_or_raise(
                lambda: launcher.destroy(launched), lambda: self.driver.remove_network(network)
            ),
        )

    def _launcher(
        self, keep_failed: bool, progress: Progress, cancelled: Cancellation | None = None
    ) -> Launcher:
        return Launcher(
            self.driver,
            boot_timeout_s=self.boot_timeout_s,
            boot_retries=self.boot_retries,
            keep_failed=keep_failed,
            templates=self._templates,
            cancelled=cancelled,
            progress=progress,
            news=silent if cancelled else self._progress,
        )
