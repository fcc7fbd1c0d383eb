"""One node's start: from its spec to a connected node, or an error that tells how far it came."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vmfest.errors import (
    AuthenticationError,
    CommandError,
    ConfigurationError,
    DriverUnavailableError,
    HostKeyError,
    ImageError,
    MachineNotFoundError,
    NotSupportedError,
    StartError,
    StoreError,
    VmfestError,
    clean_up_after,
)
from pytest_vmfest.instance import Instance, last_lines
from pytest_vmfest.node import Node
from pytest_vmfest.progress import Step, silent
from pytest_vmfest.signals import held_back
from pytest_vmfest.waiting import Deadline
from pytest_vmfest.warm.settling import settle
from pytest_vmfest.warm.templates import in_use, tidy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.guest import Introduction
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import MachineSpec
    from pytest_vmfest.warm.templates import Facts, Template, Templates

# What each stage is called while it lasts.
_STAGES = {
    "created": "creating it",
    "running": "powering on",
    "address": "booting, waiting for its SSH server",
    "port": "booting, waiting for its SSH server",
    "banner": "booting, waiting for its SSH server",
    "login": "logging in",
    "template": "freezing it, as a template for others",
    "network": "setting up its name and network",
    "init_script": "running the init script",
}


@dataclass(frozen=True)
class Plan:
    """One node to be: its machine, what its guest is told, its part in the group, its first script."""

    spec: MachineSpec
    introduction: Introduction
    role: str
    init_script: str | None = None


# How often the time for one start is waited for others who make the template.
_TURN_FACTOR = 3
# Who waits less than this has waited for nobody.
_TOLD_S = 0.1

# Another machine would fare no better.
_NOT_OF_THE_BOOT = (
    ConfigurationError,
    StoreError,
    ImageError,
    DriverUnavailableError,
    NotSupportedError,
    AuthenticationError,
    HostKeyError,
)
_BOOT_STAGES = ("running", "kernel", "login")


@dataclass(frozen=True)
class FailedBoot:
    """A start that failed because the machine did not come up."""

    stage: str
    elapsed_s: float
    reason: str

    def __str__(self) -> str:
        """``stage kernel, after 3.1 s: the guest's kernel panicked: …``."""
        return f"stage {self.stage}, after {self.elapsed_s:.1f} s: {self.reason}"


class GivenUpError(Exception):
    """A start was broken off because another node of the group failed, or the user interrupted."""


class Startup:
    """Carries out one plan, knowing at any time which stage it is in."""

    def __init__(
        self,
        driver: Driver,
        plan: Plan,
        *,
        timeout_s: float,
        keep: bool,
        templates: Templates | None = None,
        progress: Progress = silent,
        before: Sequence[FailedBoot] = (),
        last: bool = True,
    ) -> None:
        """``timeout_s`` is the budget from creation to first command; ``keep`` spares a failed machine.

        With ``templates`` it resumes from one, which is made of this very machine if there is none yet; else
        it boots. ``progress`` is told each stage. ``before`` are earlier tries of the same start; unless this
        is the ``last``, a machine that did not come up is not kept: another one follows.
        """
        self.failed_boot: FailedBoot | None = None
        """Set when the start may be tried again; nothing is left of its machine then."""
        self._driver = driver
        self._plan = plan
        self._timeout_s = timeout_s
        self._keep = keep
        self._templates = templates
        self._progress = progress
        self._before = before
        self._last = last
        self._stage = "created"
        self._created = False
        self._cancelled = threading.Event()
        self._login_began: float | None = None
        self._timings: dict[str, float] = {}
        self._instance = Instance(driver, plan.spec.name, lambda: plan.spec.image)
        self._node = Node(self._instance, plan.introduction, role=plan.role, connect_timeout_s=timeout_s)

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._plan.spec.name

    def cancel(self) -> None:
        """Give the start up; `run` then raises `GivenUpError`, at the latest after `disconnect`."""
        self._cancelled.set()

    def disconnect(self) -> None:
        """End what the start is waiting for in the guest."""
        self._node.disconnect()

    def run(self) -> Node:
        """Create, boot, connect and introduce the node.

        On failure the machine is destroyed, unless it is to be kept. Raises `StartError`.
        """
        self._deadline = Deadline(self._timeout_s)
        self._node.began = time.time()
        try:
            self._bring_up()
        except (VmfestError, GivenUpError) as error:
            with held_back():
                if isinstance(error, VmfestError) and not self._cancelled.is_set():
                    raise self._explain(error, self._deadline) from error
                # A machine that cannot be destroyed is a failure that has to be told.
                self._destroy()
                raise GivenUpError from error
        except BaseException as error:
            with held_back():
                clean_up_after(error, self._destroy)
            raise
        self._node.timings.update(self._timings)
        return self._node

    def _bring_up(self) -> None:
        plan, node = self._plan, self._node
        facts = self._resume() if self._templates else None
        if facts is None:
            self._boot(plan.spec)
        with self._phase("network", "network"):
            node.introduce(self._deadline, was=facts.macs if facts else None)
        if plan.init_script is not None:
            with self._phase("init_script", "init_script"):
                node.run_script(plan.init_script, self._deadline)

    def _boot(self, spec: MachineSpec, phase: str = "boot") -> None:
        """Create the machine and connect to it."""
        self._deadline = deadline = Deadline(self._timeout_s)
        self._login_began = None
        with self._phase("clone", "created"):
            with held_back():  # there is no moment at which it exists and nobody knows
                self._driver.create(spec)
                self._created = True
        with self._phase(phase, "running"):
            self._instance.start(deadline.remaining_s)
            self._node.connect(deadline, watch=self._give_up, on_stage=self._enter)

    # --- templates -----------------------------------------------------------------------------------

    def _resume(self) -> Facts | None:
        """Go on from the template; None, with nothing left of the machine, if it has to be booted."""
        assert self._templates is not None
        spec = self._plan.spec
        template = self._templates.of(spec)
        facts = self._facts(template) if template else None
        if template is None or facts is None:
            return None
        began, before = time.monotonic(), dict(self._timings)
        try:
            self._boot(replace(spec, thaw_from=template.folder), phase="resume")
        except VmfestError as error:
            self._drop(template)
            self._timings = {**before, "failed_start": time.monotonic() - began}
            self._templates.do_without(f"{template.name} cannot be resumed: {error.message}")
            return None
        return facts

    def _facts(self, template: Template) -> Facts | None:
        """What is known of the template, once it is there; None if it cannot be made."""
        assert self._templates is not None
        template.used()  # so that nobody takes it for old
        if facts := template.facts():
            return facts
        began = time.monotonic()
        with template.turn(_TURN_FACTOR * self._timeout_s, self._give_up):
            if (waited_s := time.monotonic() - began) >= _TOLD_S:
                self._timings["shared"] = waited_s
            # Others may have made it meanwhile, or have found that it cannot be made.
            if facts := template.facts():
                return facts
            if self._templates.of(self._plan.spec) is None or not self._templates.fits(self._plan.spec):
                return None
            return self._make(template)

    def _make(self, template: Template) -> Facts | None:
        """Make the template of this machine, which is gone then; None if that does not work here.

        What goes wrong with the guest's boot is raised: it would not fare better without.
        """
        assert self._templates is not None
        spec = self._plan.spec
        began = time.monotonic()
        outer, self._timings = self._timings, {}
        try:
            self._boot(replace(spec, freeze_to=template.folder))
            self._enter("template")
            settle(self._node, self._deadline)
            with held_back():
                self._driver.freeze(spec.name, self._deadline)
                self._created = False
            facts = template.complete(spec, self._driver, time.monotonic() - began)
            tidy(self._driver.settings.home, {template.name, *in_use(self._driver)})
            return facts
        except BaseException as error:
            if not isinstance(error, VmfestError) or self._stage != "template" or self._cancelled.is_set():
                template.discard()
                raise
            self._drop(template)
            self._templates.cannot_make(template, f"{spec.image.name} cannot be frozen: {error.message}")
            return None
        finally:
            self._timings = {**outer, "template": time.monotonic() - began}

    def _drop(self, template: Template) -> None:
        """Remove the machine and the template, so that the machine can be booted."""
        self._give_up()  # others have broken it off: that is no fault of the template
        self._destroy()
        self._created = False
        template.discard()

    def _give_up(self) -> None:
        if self._cancelled.is_set():
            raise GivenUpError

    def _destroy(self) -> None:
        # What could not be created is not ours: a machine of that name may be somebody else's.
        if self._created:
            self._node.destroy()

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._progress(Step(f"machine {self._instance.name}", _STAGES.get(stage, stage)))
        if stage == "login" and self._login_began is None:
            self._login_began = time.monotonic()

    @contextmanager
    def _phase(self, name: str, stage: str) -> Iterator[None]:
        self._give_up()
        self._enter(stage)
        began = time.monotonic()
        yield
        ended = time.monotonic()
        if name in ("boot", "resume") and self._login_began is not None:
            self._timings[name] = self._login_began - began
            self._timings["ssh"] = ended - self._login_began
        else:
            self._timings[name] = ended - began

    def _explain(self, error: VmfestError, deadline: Deadline) -> StartError:
        """The error to show for ``error``; the machine is destroyed by the way, or kept."""
        name = self._instance.name
        console = self._console()
        stage = self._told_stage(console)
        again = not self._last and stage in _BOOT_STAGES and not isinstance(error, _NOT_OF_THE_BOOT)
        kept = self._keep and self._created and not again
        remark = ""
        if kept:
            self._node.disconnect()
            remark = f"machine {name} is kept: vmfest instance console {name}, or ssh, or destroy"
        else:
            try:
                self._destroy()
            except Exception as failure:
                remark = f"and its machine could not be destroyed: {failure}"
                again = False
        if again:
            self.failed_boot = FailedBoot(stage, deadline.elapsed_s, error.message)
        return self._error(error, deadline, stage, console, remark, (name,) if kept else ())

    def _told_stage(self, console: str) -> str:
        if self._stage in ("address", "port", "banner"):
            # slirp and NAT accept connections for a guest that is not there yet: only the console tells.
            return "kernel" if last_lines(console) else "running"
        return self._stage

    def _console(self) -> str:
        if not self._created:
            return ""
        try:
            return self._instance.console()
        except MachineNotFoundError:
            return ""
        except (VmfestError, OSError) as failure:
            return f"(its console cannot be read: {failure})"

    def _error(
        self,
        error: VmfestError,
        deadline: Deadline,
        stage: str,
        console: str,
        remark: str,
        kept: tuple[str, ...],
    ) -> StartError:
        spec, name = self._plan.spec, self._plan.introduction.hostname
        last = last_lines(console)
        lines = [
            f"node {name!r} did not start: {error.message}",
            f"  stage: {stage}, after {deadline.elapsed_s:.1f} s of {self._timeout_s:g} s",
            f"  machine: {spec.name}, image {spec.image.name}, {spec.hardware.memory_mib} MiB, "
            f"{spec.hardware.cpus} CPU, driver {self._driver.name}",
        ]
        if stage != "created" and not isinstance(error, CommandError):
            told = last.splitlines() or ["(nothing)"]
            lines += ["  its console said last:", *(f"    | {line}" for line in told)]
        lines += [f"  another machine had failed before: {failed}" for failed in self._before]
        if remark:
            lines.append(f"  {remark}")
        return StartError(
            "\n".join(lines),
            stage=stage,
            elapsed_s=sum(failed.elapsed_s for failed in self._before) + deadline.elapsed_s,
            node=name,
            machine=spec.name,
            console=console,
            console_tail=last,
            hint=error.hint,
            kept=kept,
        )
