"""Somewhere with VirtualBox in it, into which the project is brought and where its tests run."""

from __future__ import annotations

import gzip
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from tests.lane import parcel, wheels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PREPARE_S = 300.0


class PlaceError(Exception):
    """The place cannot be used: it cannot be reached, or VirtualBox is not in order in there."""


@dataclass(frozen=True)
class About:
    """What a place says of itself: ``virtualbox`` 7.2.22, ``python`` 3.14, ``kernel`` and ``cpu``."""

    virtualbox: str
    python: str
    kernel: str
    cpu: str


class Place(ABC):
    """What hosts and the plain tree have in common."""

    about: About
    starts_machines = True

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        """``say`` is told each step."""
        self.name = name
        self.machines: set[str] = set()
        """Starts of VirtualBox machines seen in there, as their logs are called."""
        self._say = say

    @abstractmethod
    def open(self, command: str, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Run shell text in there; stdout and stderr are pipes."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it still is there, as it was."""

    @abstractmethod
    def marks(self) -> set[str]:
        """The emulator's marks in the logs of all machines that ran lately."""

    @abstractmethod
    def console(self) -> str:
        """What its system said last."""

    @abstractmethod
    def destroy(self) -> None:
        """Leave nothing of it."""

    def run(
        self, command: str, timeout_s: float = PREPARE_S, feed: Callable[[IO[bytes]], None] | None = None
    ) -> str:
        """Run shell text in there to its end; what it wrote to stdout, or `PlaceError`.

        ``feed`` writes what the command reads; nobody reads what that says until all is written.
        """
        process = self.open(command, stdin=subprocess.PIPE if feed else subprocess.DEVNULL)
        try:
            if feed is not None:
                assert process.stdin is not None
                # A pipe that breaks has its reason on the other side, which tells it below.
                with suppress(BrokenPipeError):
                    feed(process.stdin)
            output, told = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise PlaceError(f"{self.name}: {error}") from error
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise PlaceError(f"{self.name}: {command!r} failed: {told.decode(errors='replace')}")
        return output.decode(errors="replace").strip()

    def bring_project(self, store: Path) -> About:
        """Bring project, packages and `tiny` of ``store`` in; `PlaceError`, or `WheelsError`."""
        about = self._ask()
        wanted = wheels.requirements(parcel.PROJECT, about.virtualbox)
        packages = wheels.folder_with(wanted, about.python, store / "cache" / "lane")
        self._say(f"{len(wanted)} packages for Python {about.python} and VirtualBox {about.virtualbox}")
        self._send(store, packages, about.python)
        return about

    def _ask(self) -> About:
        said = self.run(
            "VBoxManage --version | tail -n 1; uname -r; "
            "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'; "
            "sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1"
        ).splitlines()
        if len(said) != 4:
            raise PlaceError(f"{self.name} says of itself only: {said}")
        version, kernel, python, cpu = said
        # "7.2.22_Debianr12345": the release is what the SDK is named by.
        return About(version.partition("_")[0].partition("r")[0], python, kernel, cpu)

    def _send(self, store: Path, packages: Path, python: str) -> None:
        def write(unpacker: IO[bytes]) -> None:
            # An emulated processor unpacks sooner than it deciphers.
            with gzip.GzipFile(fileobj=unpacker, mode="wb", compresslevel=1) as packed:
                parcel.write(packed, packages=packages, python=python, store=store)

        began = time.monotonic()
        self.run(f"mkdir -p {parcel.ROOT} && tar -xz -C {parcel.ROOT}", feed=write)
        self.run(
            f"cd {parcel.ROOT} && mkdir -p {parcel.WORK}/tmp {parcel.KEPT} && chmod -R go= {parcel.WORK} && "
            f"ln -s /usr/bin/python3 {parcel.PYTHON}"
        )
        self._say(f"project, packages and image are in there after {time.monotonic() - began:.1f} s")
