"""The VirtualBox lane: ``python -m tests.lane``, which is what ``tox -e virtualbox`` runs.

Builds the image `virtualbox-host` if the store has none, boots it on an emulated processor that can run
machines itself, brings this project in there and runs its tests on real VirtualBox machines: two such hosts
at the same time, as one does not keep a computer busy. What needs VirtualBox's service but no machine runs
natively, in the image's files. The processor's emulation is not perfect: `tests/lane/marks.py` says what
counts as its fault, `tests/lane/outcomes.py` what follows.

Exit status: 0 all is proved, 1 a test failed, 3 no host could be made, 4 too little was proved.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pytest_vmfest import Server
from pytest_vmfest.config import store_home
from pytest_vmfest.errors import VmfestError
from pytest_vmfest.progress import LineProgress
from tests.lane import parcel, report
from tests.lane.course import Course
from tests.lane.emulator import emulator
from tests.lane.host import MEMORY_MIB, Host
from tests.lane.lane import Lane
from tests.lane.place import Place, PlaceError
from tests.lane.plain import PlainTree
from tests.lane.session import ENVIRONMENT
from tests.lane.suites import SHARES, SUITES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.specs import ImageModel
    from tests.lane.suites import Suite

IMAGE = "virtualbox-host"
CPU = "EPYC-v4"
BEGAN = time.monotonic()
_ROOM_MIB = 1024
"""What a host takes beside its memory, and what is left to everybody else."""
_BENCHMARK = Path("benchmarks/virtualbox_starts.py")
_BENCHMARK_ROUNDS = 1
_BENCHMARK_S = 300


def say(text: str) -> None:
    """Print with the seconds since the start."""
    told = "".join(f"[{time.monotonic() - BEGAN:7.1f}] {line}\n" for line in text.splitlines())
    print(told, end="", flush=True)  # at once, as others print too


def main() -> int:
    """Run the lane; its exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    suites = [suite for suite in SUITES if not options.suite or suite.name in options.suite]
    if options.swap_starts:
        suites = [replace(suite, cold=not suite.cold) for suite in suites]
    progress = LineProgress(say)
    try:
        programs = emulator(store_home(), progress)
        with Server("qemu", qemu=programs, cpu=CPU, accel="tcg", cold=True, progress=progress) as server:
            server.own({"lane": secrets.token_hex(8)})
            server.image("tiny")
            image = server.image(IMAGE)
            ends = BEGAN + 60 * options.minutes
            say(f"the images are ready; {(ends - time.monotonic()) / 60:.0f} minutes remain for the tests")
            shares = []
            for letter, share in zip("ab", _shares(suites), strict=False):
                make = _Makers(server, image, programs, letter)
                lanes = (make.lane(share, plain, ends, options.artifacts) for plain in (True, False))
                shares.append([lane for lane in lanes if lane is not None])
            with Course([share for share in shares if share], say) as course:
                course.wait()
                if course.place is not None and not options.suite:
                    _run_benchmark(course.place)
    except VmfestError as error:
        say(f"NO ENVIRONMENT: {error}")
        return report.NO_ENVIRONMENT
    took_s = time.monotonic() - BEGAN
    book, findings = course.book, course.findings
    print(*report.lines(book, findings, suites, qemu=_version(programs), took_s=took_s), sep="\n")
    return report.NO_ENVIRONMENT if course.trouble else report.exit_status(book, findings, suites)


class _Makers:
    """Makes the lanes of one share, and their places."""

    def __init__(self, server: Server, image: ImageModel, programs: Path, letter: str) -> None:
        self._server = server
        self._image = image
        self._programs = programs
        self._letter = letter

    def lane(self, share: Sequence[Suite], plain: bool, ends: float, artifacts: Path) -> Lane | None:
        """The lane for the suites that are plain, or for the others; None if there are none."""
        suites = [suite for suite in share if suite.plain is plain]
        make = self._plain_tree if plain else self._host
        return Lane(make, suites, ends=ends, artifacts=artifacts, say=self._say) if suites else None

    def _host(self, number: int) -> Place:
        return Host(self._server, self._image, f"{self._letter}{number}", self._say)

    def _plain_tree(self, number: int) -> Place:
        return PlainTree(self._image, self._server.home, self._programs, self._say)

    def _say(self, text: str) -> None:
        say("\n".join(f"{self._letter}: {line}" for line in text.splitlines()))


def _shares(suites: Sequence[Suite]) -> list[list[Suite]]:
    """What is run at the same time: as much as there is memory for."""
    free_mib = psutil.virtual_memory().available // 1024**2
    named = {suite.name: suite for suite in suites}
    wanted = [[named[suite.name] for suite in share if suite.name in named] for share in SHARES]
    if free_mib >= len(wanted) * (MEMORY_MIB + _ROOM_MIB) + _ROOM_MIB:
        return wanted
    say(f"{free_mib} MiB of memory are free: one host after the other")
    return [[suite for share in wanted for suite in share]]


def _run_benchmark(place: Place) -> None:
    """Run it where machines ran, and print what it says: it proves nothing."""
    variables = " ".join(f"{key}={value}" for key, value in ENVIRONMENT.items() if not key.startswith("LANE"))
    command = f"cd {parcel.ROOT}/project && {variables} python3 {_BENCHMARK} {_BENCHMARK_ROUNDS} 2>&1; true"
    try:
        say(f"{_BENCHMARK} {_BENCHMARK_ROUNDS}, in {place.name}\n{place.run(command, _BENCHMARK_S)}")
    except PlaceError as error:
        say(f"no benchmark: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lane", description="the VirtualBox lane")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="until the tests are broken off, from the start on (default: %(default)s)",
    )
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(".lane"),
        help="folder for failures' logs (default: %(default)s)",
    )
    parser.add_argument(
        "--suite",
        action="append",
        choices=[suite.name for suite in SUITES],
        help="only this one (repeatable)",
    )
    parser.add_argument(
        "--swap-starts",
        action="store_true",
        help="let machines boot in the suites where they usually resume, and the other way round",
    )
    return parser.parse_args()


def _version(programs: Path) -> str:
    words = [programs / "qemu-system-x86_64", "--version"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
