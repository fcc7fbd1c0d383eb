"""How much memory machines may have on this host."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePosixPath

_SHARE = 0.9
"""The part of the memory that machines may have; the rest is for their hypervisors, pytest and the host."""


def limit_mib(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """What all machines of this host may have together, in MiB, within this process's control group."""
    import psutil

    return int(min([psutil.virtual_memory().total, *_group_limits(proc, cgroups)]) * _SHARE) >> 20


def _group_limits(proc: Path, cgroups: Path) -> list[int]:
    """The limits in bytes of our control group and those above it (cgroup v2, and v1's own hierarchy)."""
    found = []
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                base, name = (cgroups, "memory.max") if not controllers else (
                    cgroups / "memory", "memory.limit_in_bytes"
                )  # fmt: skip
                path = PurePosixPath(group.lstrip("/"))
                for folder in (path, *path.parents):
                    with suppress(OSError, ValueError):  # "max": no limit
                        found.append(int((base / folder / name).read_text()))
    return found
