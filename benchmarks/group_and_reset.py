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


def reset(server: Server) -> dict[str, float]:
    """Seconds to take a fresh machine's first snapshot with memory, and to go back to it."""
    figures = {}
    with server.launch(image="tiny") as node:
        began = time.perf_counter()
        node.snapshot("here")
        figures["snapshot"] = time.perf_counter() - began
        node.write_text("/root/used", "")
        began = time.perf_counter()
        node.revert("here")
        assert node.run("test -e /root/used").exit_status == 1
        figures["revert"] = time.perf_counter() - began
        # The same by the machine alone: nothing is done to the guest's clock and random numbers.
        node.disconnect()
        began = time.perf_counter()
        node.instance.revert("here")
        loaded = time.perf_counter()
        node.check_output("true")
        figures["loading"] = loaded - began
        figures["login"] = time.perf_counter() - loaded
    return figures


def main() -> None:
    """Print medians."""
    with Server() as server:
        print_machine(server.driver.describe(), f"{ROUNDS} rounds")
        server.launch(image="tiny").destroy()  # there is a template now
        groups = [group(server) for _ in range(ROUNDS)]
        all_figures = [reset(server) for _ in range(ROUNDS)]
    column = {key: [one[key] for one in all_figures] for key in all_figures[0]}
    rows = [
        ["group of four, request to all connected", spread(groups, "s")],
        ["snapshot with memory", spread(column["snapshot"], "s")],
        ["revert with memory, to the next command's result", spread(column["revert"], "s")],
        ["  of it: the machine's own revert, by itself", spread(column["loading"], "s")],
        ["  of it: SSH login and a command", spread(column["login"], "s")],
    ]
    print_table(["what", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
