"""Looking for what machines may leave behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path


def processes(home: Path) -> list[psutil.Process]:
    """Processes that work in a store's folder or name it: hypervisors, network switches, others of ours."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            ours = "qemu-system" in process.name() or "pytest_vmfest" in words
            if process.name() == "VBoxHeadless":
                ours, words = True, " ".join(file.path for file in process.open_files())
            if ours and (process.cwd().startswith(str(home)) or str(home) in words):
                found.append(process)
    return found


def leftovers(home: Path) -> list[str]:
    """Files and folders of machines and networks."""
    places = [base / place for base in (home, home / "virtualbox") for place in ("machines", "networks")]
    return [str(path) for place in places for path in place.glob("*")]


def ports(home: Path) -> set[int]:
    """TCP ports on which the processes of a store listen."""
    found: set[int] = set()
    for process in processes(home):
        with contextlib.suppress(psutil.Error):
            found |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def listening() -> set[int]:
    """TCP ports on which any process of this host listens."""
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
