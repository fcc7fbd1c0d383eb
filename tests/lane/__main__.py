"""The VirtualBox lane: ``python -m tests.lane``, which is what ``tox -e virtualbox`` runs.

Builds the image `virtualbox-host` if the store has none, boots it on an emulated processor that can run
machines itself, brings this project in there and runs its tests on real VirtualBox machines. The processor's
emulation is not perfect: `tests/lane/marks.py` says what counts as its fault, `tests/lane/outcomes.py` what
follows.

Exit status: 0 all is proved, 1 a test failed, 3 no host could be made, 4 too little was proved.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from pytest_vmfest import Server
from pytest_vmfest.config import store_home
from pytest_vmfest.errors import VmfestError
from pytest_vmfest.progress import LineProgress
from tests.lane import report
from tests.lane.emulator import emulator
from tests.lane.host import HostError
from tests.lane.lane import GivenUpError, Lane
from tests.lane.suites import SUITES
from tests.lane.wheels import WheelsError

IMAGE = "virtualbox-host"
CPU = "EPYC-v4"
BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print with the seconds since the start."""
    for line in text.splitlines():
        print(f"[{time.monotonic() - BEGAN:7.1f}] {line}", flush=True)


def main() -> int:
    """Run the lane; its exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    suites = [suite for suite in SUITES if not options.suite or suite.name in options.suite]
    progress = LineProgress(say)
    try:
        programs = emulator(store_home(), progress)
        server = Server("qemu", qemu=programs, cpu=CPU, accel="tcg", progress=progress)
        with server:
            server.image("tiny")
            image = server.image(IMAGE)
            say(f"the images are ready; {options.minutes} minutes remain for the tests")
            ends = time.monotonic() + 60 * options.minutes
            with Lane(server, image, suites, ends=ends, artifacts=options.artifacts, say=say) as lane:
                try:
                    lane.run()
                except (GivenUpError, HostError) as error:
                    say(f"GIVEN UP: {error}")
    except (VmfestError, WheelsError) as error:
        say(f"NO ENVIRONMENT: {error}")
        return report.NO_ENVIRONMENT
    took_s = time.monotonic() - BEGAN
    print(*report.lines(lane.book, lane.findings, suites, qemu=_version(programs), took_s=took_s), sep="\n")
    return report.exit_status(lane.book, lane.findings, suites)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lane", description="the VirtualBox lane")
    parser.add_argument("--minutes", type=float, default=60, help="time for the tests (default: %(default)s)")
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
    return parser.parse_args()


def _version(programs: Path) -> str:
    words = [programs / "qemu-system-x86_64", "--version"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
