"""One pytest invocation's machines: what is held for which fixture, and what becomes of it."""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pytest_vmfest.config import store_home
from pytest_vmfest.errors import (
    GroupStartError,
    MachineNotFoundError,
    StartError,
    VmfestError,
    all_or_raise,
    failed_starts,
)
from pytest_vmfest.phases import PROPERTY, Times
from pytest_vmfest.signals import held_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from pytest_vmfest.artifacts import Artifacts
    from pytest_vmfest.config import Settings
    from pytest_vmfest.group import NodeGroup
    from pytest_vmfest.handmade import Handmade
    from pytest_vmfest.look import Look
    from pytest_vmfest.node import Node
    from pytest_vmfest.processes import Process
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.request import VmRequest
    from pytest_vmfest.server import Server
    from pytest_vmfest.specs import ImageModel
    from pytest_vmfest.warm.spares import Spares
    from pytest_vmfest.watchdog import Watchdog

# The snapshot that `reset=True` goes back to.
PRISTINE = "vmfest-pristine"


@dataclass
class Holding:
    """The machines behind one fixture value."""

    fixture: str
    scope: pytest.Item | pytest.Collector
    """The test, class, module, package or session that the fixture is made for."""
    group: NodeGroup
    reset: Callable[[], object] | None = None
    shared: bool = False
    """Whether other workers use them: they are not destroyed with the fixture."""
    failed: bool = False
    """Whether a test that used them failed."""
    began: dict[str, int] = field(default_factory=dict)
    """By node: the length of its console when the present test began; missing if the test made it."""

    @property
    def machines(self) -> list[tuple[str, str]]:
        """The names of its nodes and of their machines."""
        return [(node.name, node.instance.name) for node in self.group.values()]

    def mark(self) -> None:
        """The present test begins here on the consoles."""
        from pytest_vmfest.look import console_lengths

        self.began = console_lengths(self.group.values())

    def belongs_to(self, item: pytest.Item) -> bool:
        """Whether a test's own fixtures hold it."""
        by_name = self.fixture in getattr(item, "fixturenames", []) and self.scope in item.listchain()
        return self.scope is item or by_name

    def look(self, *, state: str = "") -> list[Look]:
        """What can be found out about its nodes now; see `look_at`."""
        from pytest_vmfest.look import look_at

        return look_at([(node, self.began.get(node.name, 0)) for node in self.group.values()], state=state)


@dataclass(frozen=True)
class Kept:
    """A machine that outlives the run; plain data, so that workers can send it."""

    test: str
    machine: str
    ssh_command: str
    until: float
    """When it is due to be removed, in seconds since the epoch."""


@dataclass
class Run:
    """Everything that the plugin remembers of one pytest process.

    ``id`` is the same in all xdist workers of a run, ``worker`` tells them apart.
    """

    settings: Settings
    id: str
    worker: str
    progress: Progress
    controller: Process | None = None
    """xdist's controller, for which this process works."""
    artifacts: Artifacts | None = None
    """Where to keep what failing tests leave, if it is to be kept."""
    holdings: list[Holding] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    departed: list[tuple[Holding, list[Look]]] = field(default_factory=list)
    """What the present test's fixtures have let go already, as it was then."""
    _servers: dict[tuple[str, bool], Server] = field(default_factory=dict)

    @cached_property
    def times(self) -> Times:
        """What this process's tests and machines spend their time on; xdist's controller has all."""
        return Times(self.worker)

    @cached_property
    def handmade(self) -> Handmade:
        """What the running test makes without fixtures."""
        from pytest_vmfest.handmade import Handmade

        return Handmade(self.watchdog)

    @cached_property
    def spares(self) -> Spares | None:
        """What keeps nodes ready; None if that was not asked for."""
        from pytest_vmfest.warm.spares import Spares

        return Spares(self.settings.spares, self.progress) if self.settings.spares else None

    @cached_property
    def watchdog(self) -> Watchdog | None:
        """What looks at the consoles of the running test's nodes; None if that is switched off."""
        from pytest_vmfest.alarms import alarm_patterns
        from pytest_vmfest.watchdog import Watchdog

        if self.settings.console_watch == "off":
            return None
        patterns = alarm_patterns(self.settings.console_patterns)
        return Watchdog(patterns, breaks_off=self.settings.console_watch == "fail")

    @classmethod
    def of(
        cls,
        config: pytest.Config,
        settings: Settings,
        progress: Progress,
        artifacts: Artifacts | None = None,
        controller: Process | None = None,
    ) -> Run:
        """The run that pytest's process takes part in: as one of xdist's workers, or alone.

        Told by pytest, not by xdist's environment variables: a pytest that a test starts inherits those.
        """
        worker: dict[str, str] = getattr(config, "workerinput", {})
        return cls(
            settings,
            id=_run_id(worker, controller),
            worker=worker.get("workerid", "main"),
            progress=progress,
            controller=controller,
            artifacts=artifacts,
        )

    def server(self, driver: str | None = None, *, shared: bool = False) -> Server:
        """The server for a driver's name, or for the configured one; made when it is first asked for.

        What is made by one that is ``shared`` is for all workers of the run.
        """
        from pytest_vmfest.server import Server

        key = driver or self.settings.driver, shared
        if key not in self._servers:
            server = Server.configured(self.settings, driver=driver, progress=self.progress)
            tags = {"run": self.id, "worker": "all" if shared else self.worker, "owner": "pytest"}
            if shared and self.controller is not None:
                server.own_for(self.controller, tags)
            else:
                server.own(tags, parent=self.controller)
            server.on_made = self.handmade.add
            if self.spares:
                server.when_full = self.spares.give_back
            self._servers[key] = server
        return self._servers[key]

    def close(self) -> None:
        """Destroy what is left of this process's machines, and close the servers.

        xdist's controller destroys what its workers shared. Raises `DestroyError` that tells what is still
        there.
        """
        from pytest_vmfest.ownership import settle_shared

        with held_back():
            try:
                all_or_raise(
                    *([self.spares.close] if self.spares else []),
                    *(server.close for server in self._servers.values()),
                    *([] if self.controller else [partial(settle_shared, store_home(), self.id)]),
                )
            finally:
                self._servers.clear()

    def image(
        self, selector: Any, request: VmRequest, *, fixture: str, scope: pytest.Item | pytest.Collector
    ) -> ImageModel:
        """The model for a selector, fetched or built if need be."""
        with self.times.timed(_where(fixture, scope), "image"):
            return self.server(request.driver).image(selector)

    @contextmanager
    def node(
        self,
        request: VmRequest,
        model: ImageModel,
        *,
        fixture: str,
        scope: pytest.Item | pytest.Collector,
        reset: bool = False,
        shared: str = "",
    ) -> Iterator[Node]:
        """A fresh node, destroyed at the end unless it is to be kept."""
        from pytest_vmfest.group import NodeGroup

        spares = None if shared else self.spares

        def launch(server: Server, **how: Any) -> NodeGroup:
            key = f"{request.driver} {model.disk} {replace(request, image=None, nodes=None)}"
            node = (spares and spares.take(key)) or server.launch_request(request, model, **how)
            if spares and server.are_interchangeable(request, model):
                from pytest_vmfest.warm.spares import Kind

                spares.want(
                    Kind(
                        key,
                        lambda over: server.launch_request(request, model, cancelled=over),
                        lambda: server.has_room_for(request, model),
                    )
                )
            return NodeGroup([node], node.destroy)

        launch = self._shared(launch, model, shared) if shared else launch
        server = self.server(request.driver, shared=bool(shared))
        with self._held(launch, server, fixture, scope, reset=reset, shared=bool(shared)) as group:
            yield next(iter(group.values()))

    @contextmanager
    def group(
        self,
        request: VmRequest,
        model: ImageModel,
        *,
        fixture: str,
        scope: pytest.Item | pytest.Collector,
        reset: bool = False,
        shared: str = "",
    ) -> Iterator[NodeGroup]:
        """A fresh group, destroyed at the end unless it is to be kept."""

        def launch(server: Server, **how: Any) -> NodeGroup:
            return server.launch_group_request(request, model, **how)

        launch = self._shared(launch, model, shared) if shared else launch
        server = self.server(request.driver, shared=bool(shared))
        with self._held(launch, server, fixture, scope, reset=reset, shared=bool(shared)) as group:
            yield group

    def holdings_of(self, item: pytest.Item) -> list[Holding]:
        """What a test's own fixtures hold."""
        return [one for one in self.holdings if one.belongs_to(item)]

    def begin(self, item: pytest.Item) -> None:
        """A test begins, or begins anew, and is to find machines of a wider scope reset if that is wished.

        What they said before is not its matter.
        """
        self.departed.clear()
        self.handmade.begin()
        if self.watchdog:
            self.watchdog.end()  # a test that was skipped has not been told of
        if self.artifacts:
            self.artifacts.begin()
        item.user_properties[:] = [one for one in item.user_properties if not one[0].startswith(PROPERTY)]
        held = self.holdings_of(item)
        for holding in held:
            holding.mark()
        for holding in held:
            if holding.reset is not None:
                with self.times.timed(item.nodeid, "reset", holding.machines):
                    holding.reset()
                holding.mark()
        if self.watchdog:
            self.watchdog.begin(
                (node, holding.began.get(node.name, 0)) for holding in held for node in holding.group.values()
            )

    def looks_of(self, item: pytest.Item) -> list[Look]:
        """What can be found out about a test's nodes, also of those that are gone again."""
        gone = [look for holding, looks in self.departed if holding.belongs_to(item) for look in looks]
        looks = gone + [look for holding in self.holdings_of(item) for look in holding.look()]
        looks += self.handmade.looks()
        for alarm in self.watchdog.end() if self.watchdog else []:
            for look in looks:
                if look.machine == alarm.machine:
                    look.alarms.append(alarm.line)
        return looks

    def _shared(
        self,
        launch: Callable[..., NodeGroup],
        model: ImageModel,
        purpose: str,
    ) -> Callable[..., NodeGroup]:
        """``launch``, or finding what another worker has launched for the same purpose."""
        from pytest_vmfest.shared import shared_nodes

        def find_or_launch(server: Server, **how: Any) -> NodeGroup:
            if not self._shares(server):
                return launch(server, **how)
            return shared_nodes(
                server.driver,
                self.id,
                f"{purpose} on {model.name}",
                model,
                lambda: launch(server, **how),
                connect_timeout_s=server.boot_timeout_s,
            )

        return find_or_launch

    def _shares(self, server: Server) -> bool:
        """Whether other workers can use what this one makes."""
        return self.controller is not None and server.driver.outlives_us

    @contextmanager
    def _held(
        self,
        launch: Callable[..., NodeGroup],
        server: Server,
        fixture: str,
        scope: pytest.Item | pytest.Collector,
        *,
        reset: bool,
        shared: bool,
    ) -> Iterator[NodeGroup]:
        test = _where(fixture, scope)
        began = time.time()
        try:
            group = launch(server, keep_failed=self.settings.keep != "never")
        except (StartError, GroupStartError) as error:
            self._time_failed_starts(test, began, error)
            for machine in error.kept:
                self._keep(test, server, machine)
            raise
        holding = Holding(fixture, scope, group, shared=shared and self._shares(server))
        self._time_starts(test, began, group)
        try:
            self.holdings.append(holding)
            for node in group.values():
                if self.watchdog:
                    self.watchdog.add(node)
            if reset:
                with self.times.timed(test, "snapshot", holding.machines):
                    group.each(lambda node: node.snapshot(PRISTINE))
                holding.reset = lambda: group.each(lambda node: node.revert(PRISTINE))
            yield group
        finally:
            with held_back():
                self._let_go(holding, test, server)

    def _let_go(self, holding: Holding, test: str, server: Server) -> None:
        self.holdings.remove(holding)
        keep = self.settings.keep == "always" or (self.settings.keep == "failed" and holding.failed)
        end = "left to other workers" if holding.shared else "destroyed after the test"
        # Whether the teardown fails is known only when all is gone.
        self.departed.append((holding, holding.look(state="kept" if keep else end)))
        if keep:
            for node in holding.group.values():
                self._keep_node(test, server, node)
        elif holding.shared:
            holding.group.destroy()  # it is only left
        else:
            with self.times.timed(test, "teardown", holding.machines):
                holding.group.destroy()

    def _keep_node(self, test: str, server: Server, node: Node) -> None:
        command = ""
        try:
            command = node.ssh_command
        except MachineNotFoundError:
            return  # the test has destroyed it itself
        except VmfestError:
            pass  # it is off: there is nothing to log into until it is started
        self._keep(test, server, node.instance.name, command)

    def _keep(self, test: str, server: Server, machine: str, command: str = "") -> None:
        server.keep(machine, self.settings.keep_timeout)
        self.kept.append(Kept(test, machine, command, time.time() + self.settings.keep_timeout))

    def _time_starts(self, test: str, began: float, group: NodeGroup) -> None:
        lasted = time.time() - began
        for node in group.values():
            # What another worker has started, this one has only waited for.
            timings = node.timings or {"shared": lasted}
            start = node.began or began
            self.times.add_in_turn(test, start, timings, node=node.name, machine=node.instance.name)

    def _time_failed_starts(self, test: str, began: float, error: StartError | GroupStartError) -> None:
        for one in failed_starts(error):
            self.times.add(test, "failed_start", began, one.elapsed_s, node=one.node, machine=one.machine)


def _run_id(worker: dict[str, str], controller: Process | None) -> str:
    """What all workers of a controller call their run; the user's own --testrunuid may come again."""
    if controller is None:
        return secrets.token_hex(6)
    words = f"{worker.get('testrunuid')} {controller}"
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _where(fixture: str, scope: pytest.Item | pytest.Collector) -> str:
    """How durations and lists call the place where machines are used: the test, or the fixture of a scope."""
    import pytest

    if isinstance(scope, pytest.Item):
        return scope.nodeid
    return f"{scope.nodeid or 'session'}: {fixture}"
