"""Looking for what machines may leave behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path


def processes(home: Path) -> list[str]:
    """Processes that work in a store's folder or name it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if process.pid != psutil.Process().pid and _ours(process, words, home):
                found.append(f"{process.pid}: {' '.join(words)[:200]}")
    return found


def _ours(process: psutil.Process, words: list[str], home: Path) -> bool:
    name = words[0] if words else ""
    machine = "qemu-system" in name or "pytest_vmfest" in " ".join(words)
    return machine and (process.cwd().startswith(str(home)) or str(home) in " ".join(words))


def leftovers(home: Path) -> list[str]:
    """Files and folders of machines and networks."""
    return [str(path) for place in ("machines", "networks") for path in (home / place).glob("*")]


def listening() -> set[tuple[str, int]]:
    """Addresses on which any process of this host listens for TCP."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
