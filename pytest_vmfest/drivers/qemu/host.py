"""What the host offers: QEMU's programs, their version, and firmware."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pytest_vmfest.drivers import disk_images
from pytest_vmfest.errors import DriverUnavailableError, NotSupportedError

SYSTEM_PROGRAM = "qemu-system-x86_64"
SYSTEM_PACKAGE = "qemu-system-x86"
IMAGE_PROGRAM = disk_images.IMAGE_PROGRAM
IMAGE_PACKAGE = disk_images.IMAGE_PACKAGE
FIRMWARE_PACKAGE = "ovmf"

OLDEST_VERSION = (7, 2)
"""The first with ``-netdev stream``, which private networks are made of."""

INSTALL_HINT = "install what is missing with: vmfest doctor --install"

_VERSION_TIMEOUT_S = 20.0
# Debian and Ubuntu: with 4 MiB of flash, or 2 MiB in older releases.
_FIRMWARE_FOLDER = Path("/usr/share/OVMF")
_FIRMWARE_NAMES = (("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd"))


@dataclass(frozen=True)
class Programs:
    """QEMU as it was found: the paths of its programs and the version that it reports."""

    system: str
    image: str
    version: str


@dataclass(frozen=True)
class EfiFirmware:
    """OVMF: its code, and the variables that a new machine gets a copy of."""

    code: Path
    variables: Path


def find_programs(folder: Path | None = None) -> Programs:
    """QEMU's programs in ``folder``, or in ``PATH``.

    `DriverUnavailableError` names the folder, or the packages of those that are missing or too old.
    """
    needed = {SYSTEM_PROGRAM: SYSTEM_PACKAGE, IMAGE_PROGRAM: IMAGE_PACKAGE}
    # Absolute, as machines are started in folders of their own.
    places = str(folder.absolute()) if folder else None
    found = {program: shutil.which(program, path=places) for program in needed}
    missing = [program for program, path in found.items() if path is None]
    if missing and folder:
        raise DriverUnavailableError(
            f"the folder for QEMU, {folder}, has no {' and no '.join(missing)} that can be run",
            hint="it is set by --vm-qemu or VMFEST_QEMU; without, QEMU is looked for in PATH",
        )
    if missing:
        packages = " ".join(needed[program] for program in missing)
        raise DriverUnavailableError(
            f"QEMU is not installed: there is no {' and no '.join(missing)} in PATH",
            hint=f"{INSTALL_HINT} (packages on Debian and Ubuntu: {packages})",
        )
    system = str(found[SYSTEM_PROGRAM])
    version = read_version(system)
    if _numbers(version) < OLDEST_VERSION:
        oldest = ".".join(str(number) for number in OLDEST_VERSION)
        raise DriverUnavailableError(
            f"{system} is version {version}; {oldest} is the oldest that will do",
            hint=f"Debian 12, Ubuntu 23.04 and later have it in their package {SYSTEM_PACKAGE}",
        )
    return Programs(system, str(found[IMAGE_PROGRAM]), version)


def read_version(program: str) -> str:
    """The version, such as ``7.2.22``, that one of QEMU's programs reports."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverUnavailableError(f"cannot run {program}: {error}", hint=INSTALL_HINT) from error
    found = re.search(r"version (\d+(\.\d+)+)", done.stdout)
    if done.returncode != 0 or not found:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise DriverUnavailableError(f"{program} does not tell its version: {said}", hint=INSTALL_HINT)
    return found[1]


def find_efi_firmware() -> EfiFirmware:
    """OVMF; `NotSupportedError` names its package if it is not installed."""
    for code, variables in _FIRMWARE_NAMES:
        firmware = EfiFirmware(_FIRMWARE_FOLDER / code, _FIRMWARE_FOLDER / variables)
        if os.access(firmware.code, os.R_OK) and os.access(firmware.variables, os.R_OK):
            return firmware
    raise NotSupportedError(
        f"the image needs EFI firmware, and there is none in {_FIRMWARE_FOLDER}",
        hint=f"install the package {FIRMWARE_PACKAGE}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
