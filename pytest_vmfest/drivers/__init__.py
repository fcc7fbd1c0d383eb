"""Hypervisor drivers, chosen by name and loaded on demand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.base import Driver, DriverSettings

DRIVERS = {
    "virtualbox": "pytest_vmfest.drivers.virtualbox:VirtualBoxDriver",
    "qemu": "pytest_vmfest.drivers.qemu:QemuDriver",
    "fake": "pytest_vmfest.drivers.fake:FakeDriver",
}
# What `auto` tries, in order; the last is taken whatever it says, as it can tell best what to do.
AUTO = ("virtualbox", "qemu")
STANDING_ON_TEMPLATES = ("qemu",)
"""Those whose machines need the frozen one's files as long as they are there."""


def driver_class(name: str) -> type[Driver]:
    """The class of the driver called ``name``."""
    if name not in DRIVERS:
        raise ConfigurationError(f"unknown driver {name!r}", hint=f"known: auto, {', '.join(DRIVERS)}")
    module, _, attribute = DRIVERS[name].partition(":")
    found: type[Driver] = getattr(import_module(module), attribute)
    return found


def load_driver(name: str, settings: DriverSettings) -> Driver:
    """A new driver called ``name``, not opened yet; ``auto`` is the first that works on this host.

    Then its ``chosen_because`` tells why the ones before it were not taken.
    """
    if name != "auto":
        return driver_class(name)(settings)
    reasons: list[str] = []
    for candidate in AUTO:
        kind = driver_class(candidate)
        reason = kind.why_not(settings)
        if not reason:
            break
        reasons.append(f"no {candidate}: {reason}")
    driver = kind(settings)
    driver.chosen_because = "; ".join(reasons) or f"{driver.name} works here"
    return driver
