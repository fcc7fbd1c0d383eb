"""From plans to connected nodes: all of them or nothing, in parallel within the host's limits."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError, DestroyError, GroupStartError, VmfestError
from pytest_vmfest.progress import silent
from pytest_vmfest.startup import GivenUpError, Startup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.node import Node
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.startup import Plan


class Launcher:
    """Starts and destroys nodes on one driver.

    ``boot_timeout_s`` is each node's budget from its machine's creation to its first command. With
    ``keep_failed`` a machine that failed to start is left as it is. ``progress`` is told each node's stages.
    """

    def __init__(
        self, driver: Driver, *, boot_timeout_s: float, keep_failed: bool = False, progress: Progress = silent
    ) -> None:
        """Remember driver and limits."""
        self._driver = driver
        self._boot_timeout_s = boot_timeout_s
        self._keep_failed = keep_failed
        self._progress = progress

    def launch(self, plans: Sequence[Plan]) -> list[Node]:
        """Start all, in parallel; when one fails, the others are given up and nothing is left.

        Raises `StartError` for a single node, `GroupStartError` with every failure for several.
        """
        _check_memory(plans)
        cancel = threading.Event()

        def give_up() -> None:
            if cancel.is_set():
                raise GivenUpError

        startups = [
            Startup(
                self._driver,
                plan,
                timeout_s=self._boot_timeout_s,
                keep=self._keep_failed,
                progress=self._progress,
            )
            for plan in plans
        ]
        if len(plans) == 1:
            return [startups[0].run(give_up)]
        # As many at once as there are CPUs: more would only slow each other down and miss their deadlines.
        pool = ThreadPoolExecutor(min(len(plans), _cpus()), thread_name_prefix="vmfest-launch")
        futures = [pool.submit(startup.run, give_up) for startup in startups]
        try:
            for future in as_completed(futures):
                if future.exception() is not None:
                    cancel.set()
        except BaseException:  # an interrupt: wait until each start has removed its own machine
            cancel.set()
            pool.shutdown()
            self.destroy([future.result() for future in futures if future.exception() is None])
            raise
        pool.shutdown()
        return self._all_or_nothing(plans, futures)

    def _all_or_nothing(self, plans: Sequence[Plan], futures: Sequence[Future[Node]]) -> list[Node]:
        failures: dict[str, Exception] = {}
        for plan, future in zip(plans, futures, strict=True):
            error = future.exception()
            if isinstance(error, Exception) and not isinstance(error, GivenUpError):
                failures[plan.introduction.hostname] = error
        nodes = [future.result() for future in futures if future.exception() is None]
        if not failures:
            return nodes
        try:
            self.destroy(nodes)
            rest = "the other nodes were removed again"
        except DestroyError as error:
            rest = str(error)
        told = "\n".join(f"- {error}" for error in failures.values())
        raise GroupStartError(
            f"{len(failures)} of {len(plans)} nodes did not start; {rest}\n{told}", failures=failures
        )

    def destroy(self, nodes: Sequence[Node]) -> None:
        """Destroy all, also when some fail; then `DestroyError` tells each failure."""
        if len(nodes) == 1:
            nodes[0].destroy()
            return
        failures = []
        with ThreadPoolExecutor(max(1, len(nodes)), thread_name_prefix="vmfest-destroy") as pool:
            for node, future in [(node, pool.submit(node.destroy)) for node in nodes]:
                error = future.exception()
                if isinstance(error, VmfestError):
                    failures.append(f"- {node.name}: {error}")
                elif error is not None:
                    raise error
        if failures:
            raise DestroyError("\n".join(["not every machine could be destroyed", *failures]))


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
