"""QEMU on this host in words: for the report header, and for ``vmfest doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.checks import Check
from pytest_vmfest.drivers.qemu import host
from pytest_vmfest.drivers.qemu.accel import Accel, choose_accel
from pytest_vmfest.drivers.qemu.aio import choose_aio
from pytest_vmfest.errors import DriverUnavailableError, NotSupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vmfest.drivers.base import DriverSettings


def describe(settings: DriverSettings, programs: host.Programs | None, accel: Accel | None) -> str:
    """One line: version and accelerator as far as they are known without trying anything out."""
    try:
        version = (programs or host.find_programs(settings.qemu)).version
    except DriverUnavailableError as error:
        return f"QEMU: {error.message}"
    how = f"{accel.name}: {accel.reason}" if accel else f"accelerator: {settings.accel}"
    return f"QEMU {version} ({how})"


def check(settings: DriverSettings, cache: Path) -> list[Check]:
    """Everything that machines need, tried out."""
    try:
        programs = host.find_programs(settings.qemu)
    except DriverUnavailableError as error:
        packages = () if settings.qemu else (host.SYSTEM_PACKAGE, host.IMAGE_PACKAGE)
        return [Check("QEMU", False, error.message, remedy=error.hint, packages=packages)]
    detail = f"version {programs.version}: {programs.system}, {programs.image}"
    return [
        Check("QEMU", True, detail),
        _check_accel(settings, programs, cache),
        Check("QEMU disk access", True, f"by {choose_aio(programs.image, cache)}"),
        _check_firmware(),
    ]


def _check_accel(settings: DriverSettings, programs: host.Programs, cache: Path) -> Check:
    try:
        accel = choose_accel(settings.accel, programs.system, cache)
    except DriverUnavailableError as error:
        return Check("QEMU accelerator", False, error.message, remedy=error.hint)
    return Check("QEMU accelerator", True, f"{accel.name}: {accel.reason}")


def _check_firmware() -> Check:
    try:
        found = str(host.find_efi_firmware().code)
    except NotSupportedError:
        # Most images boot by BIOS, so this is no trouble.
        found = f"none; images that boot by EFI need the package {host.FIRMWARE_PACKAGE}"
    return Check("EFI firmware", True, found)
