"""What the benchmarks share: the machine's state, a table for the README, and QEMU and SSH by hand."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import paramiko
import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.specs import ImageModel


def print_machine(*remarks: str) -> None:
    """Print what the figures below it were measured on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = psutil.virtual_memory()
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {model}; {len(os.sched_getaffinity(0))} CPUs; "
          f"{memory.available >> 20} of {memory.total >> 20} MiB free; load {load}; "
          f"Linux {platform.release()}; Python {platform.python_version()}")  # fmt: skip
    if program := shutil.which("qemu-system-x86_64"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        remarks = (*said.splitlines()[:1], *remarks)
    print(*remarks, sep="; ", end="\n\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def spread(values: Sequence[float], unit: str, scale: float = 1.0, digits: int = 2) -> str:
    """Median, with the smallest and largest value."""
    low, middle, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def log_in(image: ImageModel, pid: int, limit_s: float = 120) -> paramiko.SSHClient:
    """Plain paramiko in a loop, as a test author would, to the way that the QEMU ``pid`` has opened."""
    end = time.monotonic() + limit_s
    while True:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1", _port(pid), image.login.username,
                key_filename=str(image.login.private_key), timeout=1, banner_timeout=1,
                look_for_keys=False, allow_agent=False,
            )  # fmt: skip
            return client
        except (OSError, EOFError, LookupError, paramiko.SSHException):
            client.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _port(pid: int) -> int:
    ports = [
        c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    ]
    if not ports:
        raise LookupError("not listening yet")
    return ports[0]


def tell(line: IO[str], command: str, **arguments: object) -> Any:
    """One QMP command by hand."""
    line.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    line.flush()
    while True:
        answer = json.loads(line.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        if "return" in answer:
            return answer["return"]
