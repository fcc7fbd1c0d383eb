"""How long `vmfest image build tiny` takes, from an empty store, downloads included, and what it comes to."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from common import print_machine, print_table

from pytest_vmfest import Server


def main() -> None:
    """Build once in a store of its own; print each step's share."""
    print_machine("cold: nothing downloaded before")
    steps: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory(prefix="vmfest-bench-") as folder:

        def note(step: object) -> None:
            text = str(getattr(step, "text", ""))
            if not steps or steps[-1][1] != text:
                steps.append((time.perf_counter(), text))

        began = time.perf_counter()
        with Server("qemu", home=folder, progress=note) as server:
            model = server.images.build("tiny")
        ended = time.perf_counter()
        size = sum(path.stat().st_blocks * 512 for path in Path(model.disk).parent.iterdir())
    ends = [at for at, _ in steps[1:]] + [ended]
    rows = [[text, f"{end - at:.1f} s"] for (at, text), end in zip(steps, ends, strict=True)]
    rows += [["**in all**", f"{ended - began:.1f} s"], ["size in the store", f"{size >> 20} MiB"]]
    print_table(["build of tiny", "time"], rows)


if __name__ == "__main__":
    main()
