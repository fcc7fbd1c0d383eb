"""The host's processor: memory that was frozen on one may be of no use on another."""

from __future__ import annotations

from pathlib import Path

_TOLD = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")


def host_cpu() -> list[str]:
    """What tells this host's CPU from another one."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return [line for line in lines if line.partition(":")[0].strip() in _TOLD]
