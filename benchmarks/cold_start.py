"""What a fresh machine costs: start, steps, teardown, disk and memory, beside a bare QEMU in the same run.

Every start is cold: a new differencing image, a kernel that boots. That it is a fresh machine is proved by
a file that each one writes and none may find.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import log_in, print_machine, print_table, spread

from pytest_vmfest import Server
from pytest_vmfest.specs import ImageModel

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def ours(server: Server, image: ImageModel) -> dict[str, float]:
    """One node from request to first command to destruction."""
    began = time.perf_counter()
    node = server.launch(image=image)
    try:
        assert node.run("test -e /root/used || { touch /root/used; exit 7; }").exit_status == 7
        first = time.perf_counter()
        node.check_output("true")
        second = time.perf_counter()
        figures = {"first command": first - began, "second command": second - first, **node.timings}
        figures["connected"] = sum(node.timings.values())
        qemu = [p for p in psutil.process_iter() if _runs(p, node.instance.name, server.home)]
        figures["memory MiB"] = sum(p.memory_full_info().uss for p in qemu) / (1 << 20)
        folder = server.home / "machines" / node.instance.name
        figures["disk KiB"] = sum(path.stat().st_blocks for path in folder.rglob("*")) / 2
    finally:
        ended = time.perf_counter()
        node.destroy()
    figures["teardown"] = time.perf_counter() - ended
    return figures


def _runs(process: psutil.Process, machine: str, home: Path) -> bool:
    try:
        return "qemu-system" in process.name() and process.cwd() == str(home / "machines" / machine)
    except psutil.Error:
        return False


def bare(image: ImageModel, memory_mib: int) -> float:
    """Plain QEMU and plain paramiko by hand, as a test author would: request to first command."""
    assert image.direct_boot is not None
    assert image.login.private_key is not None
    with tempfile.TemporaryDirectory() as folder:
        overlay = f"{folder}/o.qcow2"
        began = time.perf_counter()
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", image.format, overlay],
            check=True,
        )
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35",
             "-m", str(memory_mib), "-cpu", "Nehalem",
             "-kernel", image.direct_boot.kernel, "-initrd", str(image.direct_boot.initrd),
             "-append", image.direct_boot.command_line, "-drive", f"if=virtio,file={overlay},cache=unsafe",
             "-device", "virtio-rng-pci", "-serial", f"file:{folder}/console",
             "-nic", "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:0-:22"],
        )  # fmt: skip
        try:
            client = log_in(image, qemu.pid)
            client.exec_command("true")[1].channel.recv_exit_status()
            taken = time.perf_counter() - began
            client.close()
            return taken
        finally:
            qemu.kill()
            qemu.wait()


def main() -> None:
    """Interleave ours and bare QEMU; print medians and the ratio."""
    import logging

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    with Server(cold=True) as server:
        image = server.image("tiny")
        print_machine(
            server.driver.describe(), f"{ROUNDS} rounds after 1 warm-up, interleaved; all starts cold"
        )
        figures: list[dict[str, float]] = []
        by_hand: list[float] = []
        for turn in range(ROUNDS + 1):
            one, other = ours(server, image), bare(image, 512)
            if turn:
                figures.append(one)
                by_hand.append(other)
    column = {key: [one[key] for one in figures] for key in figures[0]}
    first = column["first command"]
    rows = [
        ["request to first SSH command", spread(first, "s")],
        *([f"  of it: {name}", spread(column[name], "s")] for name in ("clone", "boot", "ssh", "network")),
        ["every further command", spread(column["second command"], "ms", 1e3, 0)],
        ["bare QEMU and paramiko by hand, to first command", spread(by_hand, "s")],
        ["**ours to by hand**", f"{statistics.median(first) / statistics.median(by_hand):.2f}"],
        ["destroy", spread(column["teardown"], "ms", 1e3, 0)],
        ["memory of its own per instance", spread(column["memory MiB"], "MiB", digits=0)],
        ["disk per instance", spread(column["disk KiB"], "KiB", digits=0)],
    ]
    print_table(["tiny, cold", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
