"""One node's start: from its spec to a connected node, or an error that tells how far it came."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
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
from pytest_vmfest.waiting import Cancellation, Deadline
from pytest_vmfest.warm.starting import WarmStart

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.guest import Introduction
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import MachineSpec
    from pytest_vmfest.warm.templates import Templates

# What each stage is called while it lasts.
_STAGES = {
    "created": "creating it",
    "running": "powering on",
    "address": "booting, waiting for its SSH server",
    "port": "booting, waiting for its SSH server",
    "banner": "booting, waiting for its SSH server",
    "login": "logging in",
    "turn": "waiting for others who make its template",
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
# What came before the last boot is told from this on.
_TOLD_S = 0.1
_BOOT_STAGES = ("running", "kernel", "login")


@dataclass(frozen=True)
class FailedBoot:
    """A start that failed because the machine did not come up."""

    stage: str
    elapsed_s: float
    """Of the boot alone."""
    reason: str
    in_all_s: float
    """With all that came before it, such as waiting for others who made the template."""

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
        cancelled: Cancellation | None = None,
        progress: Progress = silent,
        before: Sequence[FailedBoot] = (),
        last: bool = True,
    ) -> None:
        """``timeout_s`` is the budget from creation to first command; ``keep`` spares a failed machine.

        With ``templates`` it resumes from one, which is made of this very machine if there is none yet; else
        it boots. ``cancelled`` may be set by others, to give it up. ``progress`` is told each stage.
        ``before`` are earlier tries of the same start; unless this is the ``last``, a machine that did not
        come up is not kept: another one follows.
        """
        self.failed_boot: FailedBoot | None = None
        """Set when the start may be tried again; nothing is left of its machine then."""
        self.driver = driver
        self._plan = plan
        self.spec = plan.spec
        self.timeout_s = timeout_s
        self._keep = keep
        self._templates = templates
        self._progress = progress
        self._before = before
        self._last = last
        self.stage = "created"
        self.has_run = False
        self._created = False
        self._frozen = False
        self._cancelled = cancelled or Cancellation()
        self._login_began: float | None = None
        self.timings: dict[str, float] = {}
        self._instance = Instance(driver, plan.spec.name, lambda: plan.spec.image)
        self.node = Node(self._instance, plan.introduction, role=plan.role, connect_timeout_s=timeout_s)
        self._cancelled.when_set(self.disconnect)

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self.spec.name

    def cancel(self) -> None:
        """Give the start up; `run` then raises `GivenUpError`."""
        self._cancelled.set()

    def disconnect(self) -> None:
        """End what the start is waiting for in the guest."""
        self.node.disconnect()

    def run(self) -> Node:
        """Create, boot, connect and introduce the node.

        On failure the machine is destroyed, unless it is to be kept. Raises `StartError`.
        """
        self._deadline = self._all = Deadline(self.timeout_s)
        self.node.began = time.time()
        try:
            self._bring_up()
        except (VmfestError, GivenUpError) as error:
            with held_back():
                if isinstance(error, VmfestError) and not self._cancelled.is_set():
                    raise self._explain(error, self._deadline) from error
                # A machine that cannot be destroyed is a failure that has to be told.
                self.destroy()
                raise GivenUpError from error
        except BaseException as error:
            with held_back():
                clean_up_after(error, self.destroy)
            raise
        self.node.timings.update(self.timings)
        return self.node

    def _bring_up(self) -> None:
        if self._templates is None or not WarmStart(self, self._templates).run():
            self.boot(self.spec)
            self.introduce()
        if (script := self._plan.init_script) is not None:
            if "resume" in self.timings:
                self._deadline = Deadline(self.timeout_s)  # that of a resume is short
            with self._phase("init_script", "init_script"):
                self.node.run_script(script, self._deadline)

    # --- its parts -----------------------------------------------------------------------------------

    def boot(self, spec: MachineSpec, *, phase: str = "boot", timeout_s: float | None = None) -> None:
        """Create the machine and connect to its guest."""
        self._deadline = deadline = Deadline(timeout_s or self.timeout_s)
        self._login_began, self.has_run = None, False
        with self._phase("clone", "created"):
            with held_back():  # there is no moment at which it exists and nobody knows
                self.driver.create(spec)
                self._created = True
        with self._phase(phase, "running"):
            self._instance.start(deadline.remaining_s)
            self.has_run = True
            self.node.connect(deadline, watch=self.check, on_stage=self.enter)

    def move_in(self) -> bool:
        """Let the driver make a resumed guest fit for its network, and connect to it anew if it had to."""
        self.check()
        self.enter("network")
        began = time.monotonic()

        def run(text: str, given: bytes) -> bytes:
            return self.node.run_script(text, self._deadline, input=given)

        if not self.driver.move_in(self.spec.name, run):
            return False
        self.node.disconnect()
        self.node.connect(self._deadline, watch=self.check, on_stage=self.enter)
        self.timings["address"] = time.monotonic() - began
        return True

    def introduce(self, *, was: Sequence[str] | None = None) -> None:
        """Give the guest its name and network; see `Node.introduce`."""
        with self._phase("network", "network"):
            self.node.introduce(self._deadline, was=was)

    def is_frozen(self) -> None:
        """The machine is gone; there will be another one of its name, for which memory is kept."""
        self._created, self._frozen = False, True

    def is_cancelled(self, error: BaseException) -> bool:
        """Whether the error only says that the start was given up."""
        return isinstance(error, GivenUpError)

    def check(self) -> None:
        """Raise `GivenUpError` if it was cancelled."""
        if self._cancelled.is_set():
            raise GivenUpError

    def destroy(self) -> None:
        """Leave nothing of the machine, if there is one."""
        # What could not be created is not ours: a machine of that name may be somebody else's.
        if self._created:
            self.node.destroy()
        elif self._frozen:
            self.driver.destroy(self.spec.name)  # there is none: that gives its memory back
        self._created = self._frozen = False

    def enter(self, stage: str) -> None:
        """Something else is done from now on."""
        self.stage = stage
        self._progress(Step(f"machine {self._instance.name}", _STAGES.get(stage, stage)))
        if stage == "login" and self._login_began is None:
            self._login_began = time.monotonic()

    @contextmanager
    def _phase(self, name: str, stage: str) -> Iterator[None]:
        self.check()
        self.enter(stage)
        began = time.monotonic()
        yield
        ended = time.monotonic()
        if name in ("boot", "resume") and self._login_began is not None:
            self.timings[name] = self._login_began - began
            self.timings["ssh"] = ended - self._login_began
        else:
            self.timings[name] = ended - began

    def _explain(self, error: VmfestError, deadline: Deadline) -> StartError:
        """The error to show for ``error``; the machine is destroyed by the way, or kept."""
        name = self._instance.name
        console = self._console()
        stage = self._told_stage(console)
        again = not self._last and stage in _BOOT_STAGES and not isinstance(error, _NOT_OF_THE_BOOT)
        kept = self._keep and self._created and not again
        remark = ""
        if kept:
            self.node.disconnect()
            remark = f"machine {name} is kept: vmfest instance console {name}, or ssh, or destroy"
        else:
            try:
                self.destroy()
            except Exception as failure:
                remark = f"and its machine could not be destroyed: {failure}"
                again = False
        if again:
            self.failed_boot = FailedBoot(stage, deadline.elapsed_s, error.message, self._all.elapsed_s)
        return self._error(error, deadline, stage, console, remark, (name,) if kept else ())

    def _told_stage(self, console: str) -> str:
        if self.stage in ("address", "port", "banner"):
            # slirp and NAT accept connections for a guest that is not there yet: only the console tells.
            return "kernel" if last_lines(console) else "running"
        return self.stage

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
        spec, name = self.spec, self._plan.introduction.hostname
        last = last_lines(console)
        elapsed_s = sum(failed.in_all_s for failed in self._before) + self._all.elapsed_s
        more_s = elapsed_s - deadline.elapsed_s
        in_all = f"; {elapsed_s:.1f} s since it was asked for" if more_s >= _TOLD_S else ""
        lines = [
            f"node {name!r} did not start: {error.message}",
            f"  stage: {stage}, after {deadline.elapsed_s:.1f} s of {self.timeout_s:g} s{in_all}",
            f"  machine: {spec.name}, image {spec.image.name}, {spec.hardware.memory_mib} MiB, "
            f"{spec.hardware.cpus} CPU, driver {self.driver.name}",
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
            elapsed_s=elapsed_s,
            node=name,
            machine=spec.name,
            console=console,
            console_tail=last,
            hint=error.hint,
            kept=kept,
        )
