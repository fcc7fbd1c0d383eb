"""A start by way of a template: resuming from it, and making it of the very machine if there is none yet."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from pytest_vmfest.errors import (
    CommandError,
    CommandTimeoutError,
    DriverError,
    DriverUnavailableError,
    MachineExistsError,
    NotSupportedError,
    RemoteError,
    StoreError,
    ThawError,
    VmfestError,
    WaitTimeoutError,
)
from pytest_vmfest.signals import held_back
from pytest_vmfest.waiting import Deadline
from pytest_vmfest.warm.settling import settle
from pytest_vmfest.warm.templates import tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.node import Node
    from pytest_vmfest.specs import MachineSpec
    from pytest_vmfest.warm.templates import Facts, Place, Template, Templates

# How often the time for one start is waited for others who make the template.
_TURN_FACTOR = 3
# A resumed guest answers in a fraction of a second, on a busy host in some; a template that takes most of the
# time that a boot may take is of no use.
_RESUME_S = 60.0
_RESUME_SHARE = 0.5
_SETTLE_S = 150.0
_FREEZE_S = 150.0
# A wait that is shorter is no phase of a start, and is not told.
_TOLD_S = 0.1
# A template that was just removed is looked up, or made, anew.
_LOOKS = 3
# What a guest can do wrong that was resumed.
_OF_THE_GUEST = (WaitTimeoutError, CommandTimeoutError, RemoteError, CommandError)
# Trouble that need not be there another time.
_PASSING = (StoreError, RemoteError, WaitTimeoutError, CommandTimeoutError)


class Start(Protocol):
    """What it takes of a start."""

    spec: MachineSpec
    driver: Driver
    node: Node
    timeout_s: float
    timings: dict[str, float]
    stage: str
    has_run: bool
    """Whether the hypervisor has taken the machine and let it run."""

    def boot(self, spec: MachineSpec, *, phase: str = "boot", timeout_s: float | None = None) -> None:
        """Create the machine and connect to its guest."""

    def move_in(self) -> bool:
        """Whether the driver had to give the guest addresses of its own before all else, and has."""

    def introduce(self, *, was: Sequence[str] | None = None) -> None:
        """Give the guest its name and network."""

    def enter(self, stage: str) -> None:
        """Something else is done from now on."""

    def check(self) -> None:
        """Raise if the start was given up meanwhile."""

    def destroy(self) -> None:
        """Leave nothing of the machine."""

    def is_frozen(self) -> None:
        """The machine is gone; there will be another one of its name."""

    def is_cancelled(self, error: BaseException) -> bool:
        """Whether the error only says that the start was given up."""


class WarmStart:
    """Resumes a machine from its template, or leaves nothing of it, so that it can be booted."""

    def __init__(self, start: Start, templates: Templates) -> None:
        """Serve one start."""
        self._start = start
        self._templates = templates

    def run(self) -> bool:
        """Whether the node is there, and itself; else it has to be booted, and why was told.

        What goes wrong with the boot of a guest that is to become the template is raised: without, it would
        fare no better.
        """
        place = self._templates.place_of(self._start.spec)
        for _ in range(_LOOKS if place else 0):
            assert place is not None
            found = place.template() or self._make_in_turn(place)
            if found is None:
                return False
            template, facts = found
            with template.held() as is_ours:
                if is_ours:
                    return self._resume(place, template, facts)
            # Somebody has just removed it.
        return False

    def _resume(self, place: Place, template: Template, facts: Facts) -> bool:
        start, templates = self._start, self._templates
        began, before = time.monotonic(), dict(start.timings)
        spec = replace(start.spec, thaw_from=template.folder)
        try:
            patience_s = min(start.timeout_s, max(_RESUME_S, _RESUME_SHARE * start.timeout_s))
            start.boot(spec, phase="resume", timeout_s=patience_s)
            own = [nic.mac for nic in spec.nics]
            start.introduce(was=own if start.move_in() else facts.macs)
        except VmfestError as error:
            start.check()  # others have broken it off: that is no fault of the template
            start.destroy()
            start.timings = {**before, "failed_start": time.monotonic() - began}
            is_damaged = isinstance(error, ThawError)
            if is_damaged or isinstance(error, _OF_THE_GUEST):
                template.give_up()
            reason = f"{start.spec.image.name} cannot be resumed: {error.message}"
            templates.cannot_resume(place, reason, ever=is_damaged)
            return False
        templates.resumed(place)
        return True

    def _make_in_turn(self, place: Place) -> tuple[Template, Facts] | None:
        """The template; None if there is none, and none can be made."""
        start, templates = self._start, self._templates
        began = time.monotonic()
        patience_s = _TURN_FACTOR * start.timeout_s

        def check() -> None:
            start.check()
            if time.monotonic() - began >= _TOLD_S and start.stage != "turn":
                start.enter("turn")

        with place.turn(patience_s, check) as is_ours:
            if (waited_s := time.monotonic() - began) >= _TOLD_S:
                start.timings["shared"] = waited_s
            # Others may have made it meanwhile, or have found that it cannot be made.
            if found := place.template():
                return found
            if not is_ours:
                templates.tell(f"others have been making the template {place.kind} for {patience_s:g} s")
                return None
            if templates.place_of(start.spec) is None or not templates.fits(start.spec):
                return None
            made = self._make(place)
        with suppress(VmfestError, OSError):  # another time, then
            tidy(templates.home)
        return made

    def _make(self, place: Place) -> tuple[Template, Facts] | None:
        """Freeze the start's own machine, which is gone then."""
        start, templates = self._start, self._templates
        began, outer = time.monotonic(), start.timings
        start.timings = {}
        try:
            with place.begun() as template:
                start.boot(replace(start.spec, freeze_to=template.folder))
                start.enter("template")
                settle(start.node, Deadline(_SETTLE_S), start.check)
                with held_back():
                    start.driver.freeze(start.spec.name, Deadline(_FREEZE_S))
                    start.is_frozen()
                return template, template.complete(start.spec, start.driver, time.monotonic() - began)
        except VmfestError as error:
            if not self._is_of_freezing(error):
                raise
            start.check()
            start.destroy()
            passing = start.stage != "template" or isinstance(error, _PASSING)
            reason = f"{start.spec.image.name} cannot be frozen: {error.message}"
            templates.cannot_make(place, reason, ever=not passing)
            return None
        except BaseException as error:
            # A test's own time limit, for one. The next machine is not to run into it again.
            if not start.is_cancelled(error):
                templates.do_without(place)
            raise
        finally:
            start.timings = {**outer, "template": time.monotonic() - began}

    def _is_of_freezing(self, error: VmfestError) -> bool:
        """Whether the machine may well boot where it is not to be frozen.

        What happens while it boots would have happened to any other machine.
        """
        if isinstance(error, (NotSupportedError, DriverUnavailableError, MachineExistsError)):
            return False
        refused = not self._start.has_run and isinstance(error, (DriverError, StoreError))
        return refused or self._start.stage == "template"
