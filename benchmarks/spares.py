"""A machine that is ready before a test asks for it, beside those that resume then: a suite, run as users do.

``spares.py [ROUNDS]``: as many tests in each of two runs, with and without ``--vm-spares 1``, after two that
do not count. A test does nothing for 3 s and more, in which a spare is made. That each machine is fresh is
proved by a file in its memory that each one writes and none may find.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import print_machine, print_table, spread

from pytest_vmfest import Server

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10
WARM_UPS = 2
SUITE = """
import json, pathlib, time
import pytest

@pytest.mark.vm(image="tiny")
@pytest.mark.parametrize("turn", range({tests}))
def test(request, turn):
    began = time.perf_counter()
    node = request.getfixturevalue("vm_instance")
    connected = time.perf_counter()
    assert node.run("test -e /run/used || {{ echo > /run/used; exit 7; }}").exit_status == 7
    first = time.perf_counter()
    told = {{"node": connected - began, "first": first - began, "phases": [*node.timings]}}
    with pathlib.Path("told").open("a") as file:
        print(json.dumps(told), file=file)
    time.sleep(max(3, 5 * (connected - began)))
"""


def run(spares: int) -> list[dict[str, Any]]:
    """What each test of a run told."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_it.py").write_text(SUITE.format(tests=WARM_UPS + ROUNDS))
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--vm-driver=qemu", f"--vm-spares={spares}", "test_it.py"],
            cwd=folder,
            check=True,
            stdout=sys.stderr,
        )
        return [json.loads(line) for line in Path(folder, "told").read_text().splitlines()][WARM_UPS:]


def main() -> None:
    """Print medians and ratios."""
    with Server("qemu") as server:
        print_machine(server.driver.describe(), f"{ROUNDS} tests of each kind after {WARM_UPS}")
        server.launch(image="tiny").destroy()  # there is a template now
    without, told = run(0), run(1)
    ready = [one for one in told if "spare" in one["phases"]]
    if not ready:
        sys.exit("no test found a spare: making one took longer than a test, or there was no memory for it")
    resumed = sum("resume" in one["phases"] for one in without)

    def row(name: str, key: str) -> list[str]:
        hits, others = ([one[key] for one in some] for some in (ready, without))
        ratio = f"{statistics.median(others) / statistics.median(hits):.0f}"
        return [name, spread(hits, "s", digits=4), spread(others, "s"), ratio]

    header = ["tiny, in a test", "with a spare", "without spares", "times"]
    rows = [row("request to connected node", "node"), row("request to first SSH command", "first")]
    counts = [f"{len(ready)} spares in {len(told)} tests", f"{resumed} of {len(without)} resumed"]
    print_table(header, [*rows, ["how", *counts, ""]])


if __name__ == "__main__":
    main()
