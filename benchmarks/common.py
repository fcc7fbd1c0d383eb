"""What the benchmarks share: the machine's state, and a table that can be pasted into the README."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence


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
