"""Looking for what machines, and who guards them, may leave behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from pathlib import Path

_HYPERVISORS = ("qemu-system", "VBoxHeadless")


class Scan:
    """What a store's machines are made of, and whether it is gone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports: set[int] = set()

    def see(self, machines: int) -> None:
        """Look at the machines while they run; they are to be this many."""
        assert len(hypervisors(self.home)) == machines
        self.ports = ports(self.home)

    def nothing_is_left(self, within_s: float = 0) -> None:
        """No process, no file, and no port that was listened on; at once, or within some time."""
        if within_s:
            what = f"nothing to be left of {processes(self.home)} and {leftovers(self.home)}"
            wait_for(
                lambda: not processes(self.home) and not leftovers(self.home), Deadline(within_s), what=what
            )
        assert processes(self.home) == []
        assert leftovers(self.home) == []
        assert not self.ports & listening()


def hypervisors(home: Path) -> list[psutil.Process]:
    """The processes of a store that run machines."""
    return [process for process in processes(home) if process.name().startswith(_HYPERVISORS)]


def processes(home: Path) -> list[psutil.Process]:
    """Processes that work in a store's folder or name it: hypervisors, network switches, others of ours."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            ours = "qemu-system" in process.name() or "pytest_vmfest" in words or "vmfest-guardian" in words
            if process.name() == "VBoxHeadless":
                ours, words = True, " ".join(file.path for file in process.open_files())
            if ours and (process.cwd().startswith(str(home)) or str(home) in words):
                found.append(process)
    return found


def leftovers(home: Path) -> list[str]:
    """Files and folders of machines and networks."""
    places = [base / place for base in (home, home / "virtualbox") for place in ("machines", "networks")]
    places.append(home / "runs")
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
