"""Runs that are ended at random moments by random signals, and how long until nothing was left of each.

``stress.py [ROUNDS] [--workers N] [--seed S]``: each round starts a pytest run of xdist workers on a store
that only these runs use, and sends SIGINT, SIGTERM or SIGKILL to its controller, to one of its workers, or to
the whole process group. When something is left after 60 s, that is an error, which ends the benchmark.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil
from common import print_machine, print_table

from pytest_vmfest import Server
from pytest_vmfest.ledger import Ledger
from pytest_vmfest.waiting import Deadline, wait_for

sys.path.append(str(Path(__file__).parents[1] / "tests" / "functional"))
import scan

GONE_S = 60
# Of a run that nobody has ended: boots under emulation, on a machine that has more to do.
RUN_S = 600
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
VICTIMS = ("controller", "worker", "group")
SUITE = """
import pytest

@pytest.mark.parametrize("turn", range({tests}))
def test_one(vm_instance, turn):
    vm_instance.check_output("true")

@pytest.mark.vm(nodes=2)
def test_group(vm_group):
    vm_group["node-0"].check_output("ping -c 1 node-1")
"""


class Run:
    """One run of the suite, on the store ``home``."""

    def __init__(self, folder: Path, home: Path, workers: int) -> None:
        """Start it, in a process group of its own."""
        self.home = home
        self.began = time.monotonic()
        self.pytest = psutil.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers),
             "--max-worker-restart=0", str(folder)],
            cwd=folder,
            env={**os.environ, "VMFEST_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def workers(self) -> list[psutil.Process]:
        """Its workers that run; the controller starts nothing else."""
        with suppress(psutil.Error):
            return [child for child in self.pytest.children() if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def hit(self, number: signal.Signals, victim: str, worker: psutil.Process | None) -> None:
        """Send a signal to the controller, to a worker or to the group; ended ones are spared."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if victim == "group":
                os.killpg(self.pytest.pid, number)
            else:
                (worker or self.pytest).send_signal(number)

    def await_nothing(self, worker: int | None) -> float:
        """Seconds until nothing is left of what was hit; of a worker, that is what its own ledger names."""
        began = time.monotonic()
        what = f"nothing to be left in {self.home}"
        if worker is not None:
            wait_for(lambda: not _owns(self.home, worker), Deadline(GONE_S), what=what)
            seconds = time.monotonic() - began
            self.pytest.wait(RUN_S)  # the others finish their tests
            wait_for(lambda: not _left(self.home), Deadline(GONE_S), what=what)
            return seconds
        wait_for(lambda: not self.running and not _left(self.home), Deadline(GONE_S), what=what)
        return time.monotonic() - began

    @property
    def running(self) -> bool:
        """Whether pytest has not ended yet."""
        return self.pytest.poll() is None


def _owns(home: Path, pid: int) -> bool:
    owners = [ledger.owner() for ledger in Ledger.all(home)]
    return any(owner is not None and owner.process.pid == pid for owner in owners)


def _left(home: Path) -> list[object]:
    return [*scan.processes(home), *scan.leftovers(home)]


def take_image(home: Path) -> None:
    """Give a store `tiny`, from the user's own, where it is built if need be."""
    with Server("qemu") as server:
        server.image("tiny")
        for part in ("images/tiny", "keys"):
            shutil.copytree(server.home / part, home / part, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def undisturbed(folder: Path, home: Path, workers: int) -> float:
    """Seconds that a whole run takes."""
    run = Run(folder, home, workers)
    if run.pytest.wait(RUN_S) != 0:
        raise SystemExit("the suite does not pass undisturbed")
    return time.monotonic() - run.began


def main() -> None:
    """Measure undisturbed runs, then disturb as many as were asked for; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print_machine(f"{options.rounds} rounds, {options.workers} workers, --seed {options.seed}")
    dice = random.Random(options.seed)
    took: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vmfest-stress-") as scratch:
        folder, home = Path(scratch) / "suite", Path(scratch) / "home"
        folder.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\nvm_driver = qemu\n")
        (folder / "test_machines.py").write_text(SUITE.format(tests=options.workers))
        take_image(home)
        # The first of them fills caches, and takes longer.
        longest_s = min(undisturbed(folder, home, options.workers) for _ in range(2))
        print(f"An undisturbed run takes {longest_s:.1f} s.\n", flush=True)
        for turn in range(options.rounds):
            number, victim = dice.choice(SIGNALS), dice.choice(VICTIMS)
            run = Run(folder, home, options.workers)
            moment_s = dice.uniform(0, longest_s)
            time.sleep(moment_s)
            machines = len(scan.hypervisors(home))
            workers = run.workers() if victim == "worker" else []
            worker = dice.choice(workers) if workers else None
            if victim == "worker" and worker is None:
                victim = "controller"  # none has begun yet, or all have ended
            run.hit(number, victim, worker)
            seconds = run.await_nothing(worker.pid if worker else None)
            took[number.name, victim].append(seconds)
            told = (
                f"{turn + 1}: {number.name} to {victim} after {moment_s:.1f} s, {machines} machines running"
            )
            print(f"{told}: nothing left after {seconds:.1f} s", file=sys.stderr, flush=True)
    rows = [_row(f"{name} to the {victim}", values) for (name, victim), values in sorted(took.items())]
    rows.append(_row("**all**", [value for values in took.values() for value in values]))
    print_table(["signal", "rounds", "median seconds until nothing was left", "worst"], rows)


def _row(what: str, values: list[float]) -> list[str]:
    return [what, str(len(values)), f"{statistics.median(values):.1f}", f"{max(values):.1f}"]


if __name__ == "__main__":
    main()
