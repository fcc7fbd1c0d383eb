"""The driver for QEMU: command line, process, monitor, disks, snapshots, accelerator and networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vmfest.drivers.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]


def __getattr__(name: str) -> type[QemuDriver]:
    """Load the driver when it is asked for; its parts can be imported without it."""
    if name != "QemuDriver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pytest_vmfest.drivers.qemu.driver import QemuDriver

    return QemuDriver
