"""A group started together, and a running node set back to a snapshot.

That a reset node is fresh is proved by a file that must be gone after each revert.
"""

from __future__ import annotations

import sys
import time

from common import print_machine, print_table, spread

from pytest_vmfest import Server

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def group(server: Server) -> float:
    """Four nodes, from request to the last one's connection."""
    began = time.perf_counter()
    with server.launch_group(4, image="tiny"):
        return time.perf_counter() - began


def resets(server: Server) -> tuple[list[float], list[float]]:
    """Seconds to take a snapshot with memory, and from each revert to the next command's result."""
    taken, reverted = [], []
    with server.launch(image="tiny") as node:
        for turn in range(ROUNDS):
            began = time.perf_counter()
            node.snapshot(f"s{turn}")
            taken.append(time.perf_counter() - began)
            node.write_text("/root/used", "")
            began = time.perf_counter()
            node.revert(f"s{turn}")
            assert node.run("test -e /root/used").exit_status == 1
            reverted.append(time.perf_counter() - began)
            node.instance.delete_snapshot(f"s{turn}")  # many would fill the disk's cache
    return taken, reverted


def main() -> None:
    """Print medians."""
    with Server() as server:
        print_machine(server.driver.describe(), f"{ROUNDS} rounds")
        taken, reverted = resets(server)
        rows = [
            ["group of four, request to all connected", spread([group(server) for _ in range(ROUNDS)], "s")],
            ["snapshot with memory", spread(taken, "s")],
            ["revert with memory, to the next command's result", spread(reverted, "s")],
        ]
    print_table(["what", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
