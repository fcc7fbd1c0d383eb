"""From plans to connected nodes: all of them or nothing, in parallel within the host's limits."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError, DestroyError, GroupStartError, clean_up_after
from pytest_vmfest.progress import silent
from pytest_vmfest.signals import held_back
from pytest_vmfest.startup import GivenUpError, Startup
from pytest_vmfest.tries import Tries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.node import Node
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.startup import FailedBoot, Plan
    from pytest_vmfest.waiting import Cancellation
    from pytest_vmfest.warm.templates import Templates

# Others give memory back when their tests are through, which may take long.
_ROOM_PATIENCE_S = 1800.0


class Launcher:
    """Starts and destroys nodes on one driver.

    ``boot_timeout_s`` is each machine's budget from its creation to its first command; a machine that does
    not come up is replaced by a fresh one up to ``boot_retries`` times, of which ``news`` is told. With
    ``keep_failed`` a machine that failed to start is left as it is. With ``templates`` machines resume from
    one, which the first makes; else they boot. With ``cancelled`` a single node waits for no memory, and is
    given up (`GivenUpError`) when that is set. ``progress`` is told each node's stages.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        boot_timeout_s: float,
        boot_retries: int = 0,
        keep_failed: bool = False,
        templates: Templates | None = None,
        cancelled: Cancellation | None = None,
        progress: Progress = silent,
        news: Progress = silent,
    ) -> None:
        """Remember driver and limits."""
        self._driver = driver
        self._boot_timeout_s = boot_timeout_s
        self._keep_failed = keep_failed
        self._boot_retries = boot_retries
        self._templates = templates
        self._cancelled = cancelled
        self._progress = progress
        self._news = news

    def launch(self, plans: Sequence[Plan]) -> list[Node]:
        """Start all, in parallel; when one fails, the others are given up and nothing is left.

        Waits until there is memory for all. Raises `StartError` for a single node, `GroupStartError` with
        every failure for several.
        """
        _check_memory(plans)
        owner = self._driver.owner
        if owner is None:
            return self._launch(plans)
        sizes = {plan.spec.name: plan.spec.hardware.memory_mib for plan in plans}
        spare = self._cancelled is not None
        owner.make_room(sizes, 0.0 if spare else _ROOM_PATIENCE_S, spare=spare)
        try:
            return self._launch(plans)
        except BaseException:
            with held_back():
                owner.give_back(sizes)
            raise

    def _launch(self, plans: Sequence[Plan]) -> list[Node]:
        startups = [
            Tries(partial(self._startup, plan), retries=self._boot_retries, news=self._news) for plan in plans
        ]
        if len(startups) == 1:
            return [startups[0].run()]
        futures = self._run_all(startups)
        failures = {
            plan.introduction.hostname: error
            for plan, future in zip(plans, futures, strict=True)
            if isinstance(error := future.exception(), Exception) and not isinstance(error, GivenUpError)
        }
        if failures:
            raise self._group_error(failures, _started(futures), len(plans))
        return _started(futures)

    def _startup(self, plan: Plan, before: Sequence[FailedBoot], last: bool) -> Startup:
        return Startup(
            self._driver,
            plan,
            timeout_s=self._boot_timeout_s,
            keep=self._keep_failed,
            templates=self._templates,
            cancelled=self._cancelled,
            progress=self._progress,
            before=before,
            last=last,
        )

    def _run_all(self, startups: Sequence[Tries]) -> list[Future[Node]]:
        """Run all to their end; the first failure cancels those that are not through yet."""
        futures: list[Future[Node]] = []
        # As many at once as there are CPUs: more would only slow each other down and miss their deadlines.
        pool = ThreadPoolExecutor(min(len(startups), _cpus()), thread_name_prefix="vmfest-launch")
        try:
            for startup in startups:
                futures.append(pool.submit(startup.run))
            for future in as_completed(futures):
                if (error := future.exception()) and not isinstance(error, GivenUpError):
                    _cancel(startups)
            pool.shutdown()
        except BaseException as interrupt:  # an interrupt: nothing may be left of what was begun
            with held_back():
                _cancel(startups)
                pool.shutdown(cancel_futures=True)
                clean_up_after(interrupt, lambda: self.destroy(_started(futures)))
            raise
        return futures

    def _group_error(
        self, failures: dict[str, Exception], started: Sequence[Node], count: int
    ) -> GroupStartError:
        """The error that tells all failures; the nodes that did start are removed by the way, or kept."""
        kept: list[str] = []
        if self._keep_failed:
            kept = [name for error in failures.values() for name in getattr(error, "kept", ())]
            kept += [node.instance.name for node in started]
            rest = f"kept: {', '.join(kept) or 'nothing'}"
        else:
            try:
                self.destroy(started)
                rest = "the other nodes were removed again"
            except DestroyError as error:
                rest = str(error)
        told = "\n".join(f"- {error}" for error in failures.values())
        return GroupStartError(
            f"{len(failures)} of {count} nodes did not start; {rest}\n{told}", failures=failures, kept=kept
        )

    def destroy(self, nodes: Sequence[Node]) -> None:
        """Destroy all, also when some fail; then `DestroyError` tells each failure."""
        if not nodes:
            return
        failures = []
        with ThreadPoolExecutor(len(nodes), thread_name_prefix="vmfest-destroy") as pool:
            for node, future in [(node, pool.submit(node.destroy)) for node in nodes]:
                if error := future.exception():
                    failures.append(f"- {node.name}: {error}")
        if failures:
            raise DestroyError("\n".join(["not every machine could be destroyed", *failures]))


def _started(futures: Sequence[Future[Node]]) -> list[Node]:
    done = [future for future in futures if not future.cancelled()]
    return [future.result() for future in done if future.exception() is None]


def _cancel(startups: Sequence[Tries]) -> None:
    for startup in startups:
        startup.cancel()
    for startup in startups:
        startup.disconnect()


def _check_memory(plans: Sequence[Plan]) -> None:
    import psutil

    wanted = sum(plan.spec.hardware.memory_mib for plan in plans)
    there = psutil.virtual_memory().total >> 20
    if wanted > there:
        raise ConfigurationError(
            f"{len(plans)} machines with {wanted} MiB of memory in all do not fit this host's {there} MiB",
            hint="ask for fewer nodes or a smaller hardware model",
        )


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
