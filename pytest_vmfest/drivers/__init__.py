"""Hypervisor drivers, chosen by name and loaded on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.base import Driver, DriverSettings

DRIVERS = {
    "qemu": "pytest_vmfest.drivers.qemu:QemuDriver",
    "fake": "pytest_vmfest.drivers.fake:FakeDriver",
}
# What `auto` tries, in order.
AUTO = ("qemu",)


def driver_class(name: str) -> type[Driver]:
    """The class of the driver called ``name``; ``auto`` is the best one for this host."""
    if name == "auto":
        name = AUTO[0]
    if name not in DRIVERS:
        raise ConfigurationError(f"unknown driver {name!r}", hint=f"known: auto, {', '.join(DRIVERS)}")
    module, _, attribute = DRIVERS[name].partition(":")
    found: type[Driver] = getattr(import_module(module), attribute)
    return found


def load_driver(name: str, settings: DriverSettings) -> Driver:
    """A new driver called ``name``, not opened yet."""
    return driver_class(name)(settings)
