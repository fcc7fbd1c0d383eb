"""Private networks of a store: one folder and one switch process each."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.qemu.switch import connect_switch, end_switch, spawn_switch
from pytest_vmfest.drivers.refusals import no_network
from pytest_vmfest.errors import DestroyError
from pytest_vmfest.specs import check_label

if TYPE_CHECKING:
    import socket
    from pathlib import Path


class Networks:
    """The private networks under a store's folder."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "networks"

    def create(self, name: str) -> None:
        """Start a network's switch; one that runs stays."""
        spawn_switch(self._folder / check_label(name, "network name"))

    def remove(self, name: str) -> None:
        """End the switch and remove its folder; one that is not there is fine."""
        folder = self._folder / check_label(name, "network name")
        end_switch(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise DestroyError(f"network {name!r}: cannot remove {folder}")

    def join(self, name: str) -> socket.socket:
        """A new port on the network; `DriverError` if there is no such network."""
        folder = self._folder / check_label(name, "network name")
        if not folder.is_dir():
            raise no_network(name)
        # Its switch ends with the process that created it, and the machine may be started by another.
        spawn_switch(folder)
        return connect_switch(folder)
