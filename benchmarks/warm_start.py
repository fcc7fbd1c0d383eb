"""What a fresh machine costs that resumes from a template, beside cold starts and QEMU by hand in one run.

``warm_start.py [ROUNDS]``: two rounds more come first, and do not count; a cold start is made in every fifth
round. That each machine is fresh is proved by a file in its memory, and one on its disk, that each one writes
and none may find.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
from common import print_machine, print_table, spread, tell

from pytest_vmfest import Node, Server
from pytest_vmfest.drivers.qemu import record
from pytest_vmfest.planning import plan_node
from pytest_vmfest.request import VmRequest
from pytest_vmfest.specs import ImageModel, MachineSpec
from pytest_vmfest.waiting import Deadline
from pytest_vmfest.warm.templates import Template, Templates

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
WARM_UPS = 2
COLD_EVERY = 5
AT_ONCE = 8
UNUSED = "test -e /run/used || test -e /root/used || { touch /run/used /root/used; exit 7; }"


def from_request(server: Server, image: ImageModel) -> dict[str, float]:
    """One node from request to first command to destruction."""
    began = time.perf_counter()
    node = server.launch(image=image)
    try:
        launched = time.perf_counter()
        assert node.run(UNUSED).exit_status == 7
        first = time.perf_counter()
        figures = {"node": launched - began, "first command": first - began, **node.timings}
        figures["login"] = launched - began - node.timings["network"]
        figures |= costs(server, node)
    finally:
        ended = time.perf_counter()
        node.destroy()
    figures["destroy"] = time.perf_counter() - ended
    return figures


def costs(server: Server, node: Node) -> dict[str, float]:
    """Memory and disk that a machine has of its own."""
    folder = server.home / "machines" / node.instance.name
    pid = int((folder / record.PID_FILE).read_text())
    return {
        "memory MiB": psutil.Process(pid).memory_full_info().uss / (1 << 20),
        "disk KiB": sum(path.stat().st_blocks for path in folder.rglob("*")) / 2,
    }


def resumed(server: Server, spec: MachineSpec) -> float:
    """Seconds until the driver has a machine that runs."""
    began = time.perf_counter()
    server.driver.create(spec)
    try:
        server.driver.start(spec.name, Deadline(60))
        return time.perf_counter() - began
    finally:
        server.driver.destroy(spec.name)


def by_hand(template: Template, command: list[str]) -> float:
    """The same with nothing but QEMU: overlay, start, incoming, cont."""
    with tempfile.TemporaryDirectory(dir=template.folder.parent) as folder:
        began = time.perf_counter()
        shutil.copyfile(template.folder / "overlay.qcow2", f"{folder}/{record.DISK}")
        qemu = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
        try:
            with socket.socket(socket.AF_UNIX) as line:
                while line.connect_ex(f"{folder}/{record.CONTROL}"):
                    time.sleep(0.001)
                file = line.makefile("rw")
                file.readline()
                tell(file, "qmp_capabilities")
                ignore = {"capability": "x-ignore-shared", "state": True}
                tell(file, "migrate-set-capabilities", capabilities=[ignore])
                tell(file, "migrate-incoming", uri=f"exec:cat {template.folder / 'state'}")
                while tell(file, "query-status")["status"] == "inmigrate":
                    time.sleep(0.001)
                tell(file, "cont")
                return time.perf_counter() - began
        finally:
            qemu.kill()
            qemu.wait()


def command_of(server: Server, spec: MachineSpec) -> list[str]:
    """QEMU's command line of a machine that has resumed, without what it inherits from us."""
    server.driver.create(spec)
    try:
        server.driver.start(spec.name, Deadline(60))
        folder = server.home / "machines" / spec.name
        words = psutil.Process(int((folder / record.PID_FILE).read_text())).cmdline()
    finally:
        server.driver.destroy(spec.name)
    owner = next(i for i, word in enumerate(words) if word.startswith("socket,id=owner"))
    return [*words[: owner - 1], *words[owner + 3 :]]


def at_once(server: Server, specs: list[MachineSpec]) -> tuple[float, float, list[float]]:
    """Seconds until as many guests run, and until their nodes are there; MiB that each has of its own then.

    What they have read of their template's memory is all of theirs together.
    """

    def start(spec: MachineSpec) -> None:
        server.driver.create(spec)
        server.driver.start(spec.name, Deadline(60))

    with ThreadPoolExecutor(len(specs)) as pool:
        began = time.perf_counter()
        list(pool.map(start, specs))
        running = time.perf_counter() - began
        list(pool.map(lambda spec: server.driver.destroy(spec.name), specs))
        began = time.perf_counter()
        nodes = list(pool.map(lambda spec: server.launch(image=spec.image), specs))
        connected = time.perf_counter() - began
        memory = [costs(server, node)["memory MiB"] for node in nodes]
        list(pool.map(Node.destroy, nodes))
    return running, connected, memory


def main() -> None:
    """Interleave all of it; print medians and ratios."""
    name = sys.argv[2] if len(sys.argv) > 2 else "tiny"
    with Server("qemu") as server, Server("qemu", cold=True) as cold_server:
        image = server.image(name)
        print_machine(server.driver.describe(), f"{ROUNDS} rounds after {WARM_UPS} warm-ups, interleaved")
        server.launch(image=image).destroy()  # there is a template now
        plan = plan_node(VmRequest.parse({}, where="benchmark"), image, "vm", {})
        place = Templates(server.driver, lambda step: None).place_of(plan.spec)
        made = place and place.template()
        assert made
        template = made[0]

        def spec() -> MachineSpec:
            name = f"bench-{secrets.token_hex(4)}"
            return MachineSpec(name, image, plan.spec.hardware, plan.spec.network, thaw_from=template.folder)

        command = command_of(server, spec())
        warm: list[dict[str, float]] = []
        cold, ours, hand = [], [], []
        for turn in range(WARM_UPS + ROUNDS):
            one = from_request(server, image), resumed(server, spec()), by_hand(template, command)
            if turn >= WARM_UPS:
                warm.append(one[0])
                ours.append(one[1])
                hand.append(one[2])
                if turn % COLD_EVERY == 0:
                    cold.append(from_request(cold_server, image))
        running, connected, memory = at_once(server, [spec() for _ in range(AT_ONCE)])
    column = {key: [one[key] for one in warm] for key in warm[0]}
    first = statistics.median(column["first command"])
    cold_first = [one["first command"] for one in cold]
    rows = [
        ["request to authenticated SSH", spread(column["login"], "s")],
        ["request to a node that is itself", spread(column["node"], "s")],
        ["request to first SSH command", spread(column["first command"], "s")],
        *([f"  of it: {name}", spread(column[name], "s")] for name in ("clone", "resume", "ssh", "network")),
        ["cold: request to first SSH command", spread(cold_first, "s")],
        ["**cold to warm**", f"{statistics.median(cold_first) / first:.1f}"],
        ["until the guest runs", spread(ours, "s", digits=3)],
        ["the same with QEMU by hand", spread(hand, "s", digits=3)],
        ["**ours to by hand**", f"{statistics.median(ours) / statistics.median(hand):.2f}"],
        ["destroy", spread(column["destroy"], "ms", 1e3, 0)],
        ["memory, alone", spread(column["memory MiB"], "MiB", digits=0)],
        [f"memory of its own, of {AT_ONCE} at once", spread(memory, "MiB", digits=0)],
        ["disk per instance", spread(column["disk KiB"], "KiB", digits=0)],
        [f"{AT_ONCE} at once, until the guests run", f"{AT_ONCE / running:.1f} a second"],
        [f"{AT_ONCE} at once, until all nodes are there", f"{connected:.1f} s"],
    ]
    print_table([f"{name}, warm", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
