"""What a fresh machine costs on VirtualBox, resumed and booted, beside VBoxManage by hand in the same run.

A cold start is a new differencing image and a system that boots, a warm one goes on from a template. That it
is a fresh machine is proved by a file that each one writes and none may find.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
from common import print_machine, print_table, spread

from pytest_vmfest import HardwareModel, Server

if TYPE_CHECKING:
    from pytest_vmfest.specs import ImageModel

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
HARDWARE = HardwareModel("benchmark", memory_mib=256, cpus=1)
FRESH = "test -e /root/used || { touch /root/used; exit 7; }"


def ours(server: Server) -> dict[str, float]:
    """One machine, step by step, from its creation to its destruction."""
    clock = Clock()
    with server.instance("benchmark", "tiny", HARDWARE) as machine:
        clock.lap("create")
        machine.start()
        clock.lap("start")
        address = machine.endpoint(300).host
        clock.lap("address")
        log_in(address, server.image("tiny"))
        clock.lap("ssh")
        clock.figures["first command"] = clock.total()
        folder = server.home / "virtualbox" / "machines" / "benchmark"
        clock.figures["disk KiB"] = sum(path.stat().st_blocks for path in folder.rglob("*.vdi")) / 2
        began = time.perf_counter()
        machine.snapshot("here")
        clock.figures["snapshot"] = time.perf_counter() - began
        began = time.perf_counter()
        machine.revert("here")
        log_in(machine.endpoint(300).host, server.image("tiny"), used=True)
        clock.figures["revert"] = time.perf_counter() - began
        began = time.perf_counter()
    clock.figures["destroy"] = time.perf_counter() - began
    return clock.figures


def whole(server: Server) -> dict[str, float]:
    """What a fixture does: a machine from request to first command, with all that is set right in it."""
    clock = Clock()
    with server.launch("benchmark", image="tiny", hardware=HARDWARE) as node:
        assert node.run(FRESH).exit_status == 7, "this is not the machine that it should be"
        return {**node.timings, "first command": clock.total()}


def by_hand(image: ImageModel, base: str) -> float:
    """VBoxManage and paramiko, as a test author would: a linked clone, from request to first command."""
    clock = Clock()
    manage("clonevm", base, "--snapshot", "base", "--options", "link", "--name", "by-hand", "--register")
    try:
        manage("startvm", "by-hand", "--type", "headless")
        mac = re.search(r'^macaddress1="(\w+)"', manage("showvminfo", "by-hand", "--machinereadable"), re.M)
        assert mac is not None
        pairs = ":".join(re.findall("..", mac[1]))
        while not (found := lease(pairs)):
            time.sleep(0.2)
        log_in(found, image)
        return clock.total()
    finally:
        manage("controlvm", "by-hand", "poweroff")
        while "locked" in manage("unregistervm", "by-hand", "--delete", check=False):
            time.sleep(0.1)


def lease(mac: str) -> str:
    """The address that the DHCP server gave to a MAC; empty if none yet."""
    said = manage("dhcpserver", "findlease", "--interface=vboxnet0", f"--mac-address={mac}", check=False)
    found = re.search(r"IP Address:\s+(\S+)", said)
    return found[1] if found and "acked" in said else ""


def make_base(image: ImageModel, folder: Path) -> str:
    """A machine to clone by hand, with a snapshot."""
    disk = folder / "base.vdi"
    subprocess.run(["qemu-img", "convert", "-O", "vdi", image.disk, disk], check=True)
    manage(
        "createvm",
        "--name",
        "benchmark-base",
        "--ostype",
        "Linux_64",
        "--register",
        "--basefolder",
        str(folder),
    )
    manage("modifyvm", "benchmark-base", "--memory", str(HARDWARE.memory_mib), "--ioapic", "on")
    manage("modifyvm", "benchmark-base", "--nic1", "hostonly", "--hostonlyadapter1", "vboxnet0")
    manage("modifyvm", "benchmark-base", "--nic2", "nat", "--audio-enabled", "off")
    manage("storagectl", "benchmark-base", "--name", "disk", "--add", "sata")
    manage("storageattach", "benchmark-base", "--storagectl", "disk", "--port", "0", "--type", "hdd",
           "--medium", str(disk))  # fmt: skip
    manage("snapshot", "benchmark-base", "take", "base")
    return "benchmark-base"


def manage(*words: str, check: bool = True) -> str:
    """Run VBoxManage; what it said."""
    done = subprocess.run(["VBoxManage", "-q", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"VBoxManage {' '.join(words)}: {done.stderr}")
    return done.stdout + done.stderr


def log_in(address: str, image: ImageModel, *, used: bool = False) -> None:
    """Wait for SSH and run the command that tells whether the machine is fresh."""
    while True:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(address, username=image.login.username, key_filename=str(image.login.private_key),
                           timeout=1, banner_timeout=10, look_for_keys=False, allow_agent=False)  # fmt: skip
            status = client.exec_command(FRESH)[1].channel.recv_exit_status()
            assert status == (0 if used else 7), "this is not the machine that it should be"
            return
        except (OSError, EOFError, paramiko.SSHException):
            time.sleep(0.1)
        finally:
            client.close()


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._began = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last step."""
        now = time.perf_counter()
        self.figures[name], self._last = now - self._last, now

    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began


def main() -> None:
    """Interleave ours and VBoxManage's; print medians and the ratio."""
    import logging

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    figures: list[dict[str, float]] = []
    others: list[float] = []
    warm: list[dict[str, float]] = []
    cold: list[float] = []
    with (
        Server("virtualbox") as server,
        Server("virtualbox", cold=True) as cold_server,
        tempfile.TemporaryDirectory() as folder,
    ):
        image = server.image("tiny")
        print_machine(server.driver.describe(), f"{ROUNDS} rounds after 1 warm-up, interleaved")
        ours(server)  # makes the base disk and the host-only interface
        whole(server)  # makes the template
        base = make_base(image, Path(folder))
        try:
            for _ in range(ROUNDS):
                warm.append(whole(server))
                cold.append(whole(cold_server)["first command"])
                figures.append(ours(server))
                others.append(by_hand(image, base))
        finally:
            manage("unregistervm", base, "--delete", check=False)
    column = {key: [one[key] for one in figures] for key in figures[0]}
    steps = {
        "create": "create",
        "start": "start",
        "address": "address (DHCP lease)",
        "ssh": "SSH login and command",
    }
    rows = [
        ["request to first SSH command", spread(column["first command"], "s", digits=1)],
        *([f"  of it: {text}", spread(column[key], "s")] for key, text in steps.items()),
        ["by hand (VBoxManage, linked clone), to first command", spread(others, "s", digits=1)],
        [
            "**ours to by hand**",
            f"{statistics.median(column['first command']) / statistics.median(others):.2f}",
        ],
        ["snapshot with memory", spread(column["snapshot"], "s")],
        ["revert with memory, to next command", spread(column["revert"], "s")],
        ["destroy", spread(column["destroy"], "s")],
        ["disk per instance", spread(column["disk KiB"], "KiB", digits=0)],
    ]
    print_table(["tiny on VirtualBox, cold", "median (smallest to largest)"], rows)
    resumed = [one["first command"] for one in warm]
    phases = {
        "clone": "create",
        "resume": "start, and entering it through NAT",
        "ssh": "login there",
        "address": "addresses of its own, DHCP lease, login again",
        "network": "clock, random numbers, name",
    }
    rows = [
        ["a fixture's machine that resumes, to first command", spread(resumed, "s", digits=1)],
        *([f"  of it: {text}", spread([one[key] for one in warm], "s")] for key, text in phases.items()),
        ["the same, booted", spread(cold, "s", digits=1)],
        ["**warm to cold**", f"{statistics.median(resumed) / statistics.median(cold):.2f}"],
    ]
    print_table(["tiny on VirtualBox, warm", "median (smallest to largest)"], rows)


if __name__ == "__main__":
    main()
