"""What the plugin costs a suite that uses no machine: whole pytest runs with and without it, interleaved."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import print_machine, print_table, spread

# Other plugins that are installed have their own costs, and their own words.
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 20


def main() -> None:
    """Time both in turns; print medians, their difference and ratio."""
    print_machine(f"{ROUNDS} rounds after 2 warm-ups, interleaved")
    times: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_none.py").write_text("def test_none(): pass\n")
        for turn in range(ROUNDS + 2):
            for kind, options in (("with", ["-p", "pytest_vmfest.plugin"]), ("without", [])):
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
                    cwd=folder, check=True, stdout=subprocess.DEVNULL, env=ALONE,
                )  # fmt: skip
                if turn >= 2:
                    times[kind].append(time.perf_counter() - began)
    there, gone = (statistics.median(times[kind]) for kind in ("with", "without"))
    rows = [
        ["pytest without the plugin", spread(times["without"], "ms", 1e3, 0)],
        ["pytest with it, no machine used", spread(times["with"], "ms", 1e3, 0)],
        ["**difference of the medians**", f"{(there - gone) * 1e3:.0f} ms (ratio {there / gone:.2f})"],
    ]
    print_table(["a suite of one test", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
