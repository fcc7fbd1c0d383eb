"""What VirtualBox says about itself: its part of ``vmfest doctor``, and whether it can be used at all."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.checks import Check
from pytest_vmfest.drivers.virtualbox import bridged, hostonly, trouble
from pytest_vmfest.drivers.virtualbox.connection import connect, find_installation
from pytest_vmfest.errors import DriverError, DriverUnavailableError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.drivers.virtualbox.connection import Connection

_DEVICE = Path("/dev/vboxdrv")
_MODULES = Path("/sys/module")
_CPU = Path("/proc/cpuinfo")
# From this kernel on, KVM takes the CPU's virtualization when it is loaded, not when it runs a machine.
_KVM_HOLDS_SINCE = (6, 12)
# From this version on, VirtualBox's module asks KVM for it.
_SHARES_SINCE = (7, 2)
_KVM_REMEDY = (
    "sudo modprobe -r kvm_intel kvm_amd, or boot with kvm.enable_virt_at_load=0 on the kernel's command line"
)


def describe(settings: DriverSettings, connection: Connection | None) -> str:
    """One line: the version, as far as it is known without asking VirtualBox's service."""
    where = settings.url or "this host"
    if connection is not None:
        return f"VirtualBox {connection.version} ({where})"
    if settings.url:
        return f"VirtualBox ({where})"
    try:
        return f"VirtualBox {find_installation().version}"
    except DriverUnavailableError as error:
        return f"VirtualBox: {error.message}"


def why_not(settings: DriverSettings) -> str:
    """Why machines cannot be run by VirtualBox; empty if nothing speaks against it.

    Only files are looked at, so this is quick; where there is no VirtualBox, very quick.
    """
    if settings.url:
        return ""
    try:
        installation = find_installation()
    except DriverUnavailableError:
        return "VirtualBox is not installed"
    if importlib.util.find_spec("vboxapi") is None:
        return f"VirtualBox's Python side is missing ({installation.sdk_command})"
    for check in (_check_module(), _check_cpu(), _check_kvm(installation.version)):
        if not check.ok:
            return check.detail
    return ""


def check(settings: DriverSettings) -> list[Check]:
    """Everything that machines need, tried out as far as that goes without a machine."""
    if settings.url:
        return [_check_service(settings)]
    try:
        installation = find_installation()
    except DriverUnavailableError as error:
        return [Check("VirtualBox", False, error.message, remedy=error.hint)]
    found = Check("VirtualBox", True, f"version {installation.version}: {installation.folder}")
    checks = [found, _check_module(), _check_cpu(), _check_kvm(installation.version)]
    if importlib.util.find_spec("vboxapi") is None:
        detail = "vboxapi is not installed for this Python"
        return [*checks, Check("VirtualBox SDK", False, detail, installation.sdk_command)]
    return [*checks, _check_service(settings), *_check_networks(settings)]


def _check_module() -> Check:
    name = "VirtualBox kernel module"
    if not _DEVICE.exists():
        detail = f"there is no {_DEVICE}: the module vboxdrv is not loaded"
        return Check(name, False, detail, trouble.NO_MODULE)
    # VirtualBox's own programs are set-uid root and open it; so it need not be open to this user.
    return Check(name, True, "vboxdrv is loaded")


def _check_cpu() -> Check:
    name = "VirtualBox: CPU"
    try:
        flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", _CPU.read_text(), re.MULTILINE)
    except OSError:
        flags = None
    if flags is None:
        remedy = "switch it on in the host's firmware; in a virtual machine, nested virtualization"
        return Check(name, False, "the CPU has neither VT-x (vmx) nor AMD-V (svm) to give", remedy)
    return Check(name, True, f"has {flags[1]}")


def _check_kvm(version: str) -> Check:
    """Whether KVM has taken the CPU's virtualization, which only one of the two can have."""
    name = "VirtualBox beside KVM"
    loaded = [module for module in ("kvm_intel", "kvm_amd") if (_MODULES / module).exists()]
    if not loaded:
        return Check(name, True, "KVM is not loaded")
    if not _kvm_holds():
        return Check(name, True, f"{loaded[0]} is loaded, and holds the CPU only while it runs machines")
    if _numbers(version) >= _SHARES_SINCE:
        return Check(name, True, f"{loaded[0]} is loaded; VirtualBox {version} asks it for the CPU")
    detail = f"{loaded[0]} holds the CPU's virtualization as long as it is loaded"
    return Check(name, False, detail, _KVM_REMEDY)


def _kvm_holds() -> bool:
    try:
        return (_MODULES / "kvm/parameters/enable_virt_at_load").read_text().strip() in ("Y", "1")
    except OSError:
        return _numbers(os.uname().release) >= _KVM_HOLDS_SINCE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _check_service(settings: DriverSettings) -> Check:
    name = "VirtualBox service"
    try:
        connection = connect(settings)
    except DriverError as error:
        return Check(name, False, error.message, remedy=error.hint)
    return Check(name, True, f"version {connection.version}, settings in {connection.vbox.home_folder}")


def _check_networks(settings: DriverSettings) -> list[Check]:
    try:
        connection = connect(settings)
        local = hostonly.host_only_interfaces(connection)
        lan = bridged.bridged_interfaces(connection)
    except DriverError as error:
        return [Check("VirtualBox networks", False, error.message, remedy=error.hint)]
    found = ", ".join(local) or "none yet"
    made = "" if settings.local_interface in local else f"; {settings.local_interface} is made when needed"
    return [
        Check("VirtualBox host-only interfaces", True, f"{found}{made}"),
        Check("VirtualBox bridged interfaces", True, ", ".join(lan) or "none"),
    ]
