"""What VirtualBox says about itself: its part of ``vmfest doctor``, and whether it can be used at all."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.checks import Check
from pytest_vmfest.drivers.disk_images import IMAGE_PACKAGE, find_image_program
from pytest_vmfest.drivers.virtualbox import bridged, hostonly, trouble
from pytest_vmfest.drivers.virtualbox.connection import check_sdk, connect, find_installation
from pytest_vmfest.drivers.virtualbox.soap import without_password
from pytest_vmfest.drivers.virtualbox.versions import check_known
from pytest_vmfest.errors import DriverUnavailableError, VmfestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.drivers.virtualbox.connection import Connection, Installation

_HOST_ONLY_DEVICE = Path("/dev/vboxnetctl")
_MODULES = Path("/sys/module")
_CPU = Path("/proc/cpuinfo")
_EXTENSIONS = {"vmx": "VT-x (vmx)", "svm": "AMD-V (svm)"}
_LOAD_TIMEOUT_S = 20
# From this kernel on, KVM takes the CPU's virtualization when it is loaded, not when it runs a machine.
_KVM_HOLDS_SINCE = (6, 12)
# From this version on, VirtualBox's module asks KVM for it.
_SHARES_SINCE = (7, 2)


def describe(settings: DriverSettings, connection: Connection | None) -> str:
    """One line: the version, as far as it is known without asking VirtualBox's service."""
    where = without_password(settings.url) if settings.url else "this host"
    if connection is not None:
        return f"VirtualBox {connection.version} ({where})"
    if settings.url:
        return f"VirtualBox ({where})"
    try:
        return f"VirtualBox {find_installation().version}".rstrip()
    except DriverUnavailableError as error:
        return f"VirtualBox: {error.message}"


def why_not(settings: DriverSettings) -> str:
    """Why machines cannot be run by VirtualBox; empty if nothing speaks against it.

    Looks at files, asks VBoxManage for the version, and loads the bindings into a Python of its own: some
    tenths of a second, and VirtualBox's service is not started. Where there is no VirtualBox, very quick.
    """
    if settings.url:
        return ""
    try:
        installation = find_installation()
    except DriverUnavailableError:
        return "VirtualBox is not installed"
    return next((check.detail for check in _look(settings, installation) if not check.ok), "")


def check(settings: DriverSettings, connection: Connection | None = None) -> list[Check]:
    """Everything that machines need, tried out as far as that goes without a machine.

    ``connection`` is one that is open already; else one is tried.
    """
    if settings.url:
        return [_check_image_program(settings), *_check_service(settings, connection)]
    try:
        installation = find_installation()
    except DriverUnavailableError as error:
        return [Check("VirtualBox", False, error.message, remedy=error.hint)]
    checks = list(_look(settings, installation))
    if checks[-1].ok:
        checks += _check_service(settings, connection)
    return checks


def _look(settings: DriverSettings, installation: Installation) -> Iterator[Check]:
    """What can be told without VirtualBox's service; its Python side, which takes longest, comes last."""
    yield _check_version(installation)
    yield _check_module()
    yield _check_cpu()
    yield _check_kvm(installation.version)
    yield _check_image_program(settings)
    yield _check_sdk(installation)


def _check_version(installation: Installation) -> Check:
    name, version = "VirtualBox", installation.version
    if not version:
        detail = f"{installation.folder}: its version is not known, as VBoxManage --version does not tell it"
        return Check(name, False, detail, f"try it by hand: {installation.folder}/VBoxManage --version")
    try:
        check_known("_".join(version.split(".")[:2]), version)
    except DriverUnavailableError as error:
        return Check(name, False, error.message, error.hint)
    return Check(name, True, f"version {version}, in {installation.folder}")


def _check_image_program(settings: DriverSettings) -> Check:
    try:
        return Check("qemu-img", True, find_image_program(settings.qemu))
    except DriverUnavailableError as error:
        packages = () if settings.qemu else (IMAGE_PACKAGE,)
        return Check("qemu-img", False, error.message, error.hint, packages)


def _check_sdk(installation: Installation) -> Check:
    """Whether VirtualBox's Python side is there, of the right version, and VirtualBox's bindings load."""
    name = "VirtualBox SDK"
    if importlib.util.find_spec("vboxapi") is None:
        detail = f"VirtualBox's Python side (vboxapi) is missing ({installation.sdk_command})"
        return Check(name, False, detail, f"install it for this Python ({sys.executable})")
    try:
        check_sdk(installation)
    except DriverUnavailableError as error:
        return Check(name, False, error.message, error.hint)
    reason = _why_no_bindings(installation)
    if reason:
        detail = f"VirtualBox's bindings cannot be loaded by this Python ({sys.executable}): {reason}"
        remedy = "use the Python that VirtualBox was built for (Debian: the system's python3, or a virtual "
        return Check(name, False, detail, f"{remedy}environment made with it)")
    return Check(name, True, "vboxapi and VirtualBox's bindings are there for this Python")


def _why_no_bindings(installation: Installation) -> str:
    """What a Python like this one says when it loads VirtualBox's bindings; empty if it does."""
    folder = installation.folder
    sdk = os.environ.get("VBOX_SDK_PATH") or folder / "sdk"
    code = "import sys; sys.path += sys.argv[1:]; import xpcom.vboxxpcom"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, folder, f"{sdk}/bindings/xpcom/python"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LOAD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # nothing is known; connecting will tell
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"it ends with status {done.returncode}"


def _check_module() -> Check:
    name = "VirtualBox kernel module"
    if not trouble.DEVICE.exists():
        detail = f"there is no {trouble.DEVICE}: the module vboxdrv is not loaded"
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
    return Check(name, True, f"has {_EXTENSIONS[flags[1]]}")


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
    return Check(name, False, detail, trouble.KVM_HOLDS_CPU)


def _kvm_holds() -> bool:
    try:
        return (_MODULES / "kvm/parameters/enable_virt_at_load").read_text().strip() in ("Y", "1")
    except OSError:
        return _numbers(os.uname().release) >= _KVM_HOLDS_SINCE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _check_service(settings: DriverSettings, connection: Connection | None) -> list[Check]:
    """VirtualBox's service, and the networks that it knows."""
    name = "VirtualBox web service" if settings.url else "VirtualBox service (VBoxSVC)"
    try:
        connection = connection or connect(settings)
        with trouble.translated("VirtualBox's service cannot be asked"):
            detail = f"version {connection.version} answers, settings in {connection.vbox.home_folder}"
    except VmfestError as error:
        return [Check(name, False, error.message, remedy=error.hint)]
    return [Check(name, True, detail), *_check_networks(settings, connection)]


def _check_networks(settings: DriverSettings, connection: Connection) -> list[Check]:
    try:
        local = hostonly.host_only_interfaces(connection)
        lan = bridged.bridged_interfaces(connection)
    except VmfestError as error:
        return [Check("VirtualBox networks", False, error.message, remedy=error.hint)]
    return [
        _check_host_only(settings, local),
        Check(
            "VirtualBox bridged interfaces",
            bool(lan),
            ", ".join(lan) or "none: network mode bridged cannot be had",
        ),
    ]


def _check_host_only(settings: DriverSettings, there: Iterable[str]) -> Check:
    name = "VirtualBox host-only interfaces"
    wanted = settings.local_interface
    if wanted in there:
        return Check(name, True, ", ".join(there))
    found = ", ".join(there) or "none"
    if settings.url is None and not _HOST_ONLY_DEVICE.exists():
        detail = f"{found}; {wanted} cannot be made without the module vboxnetadp, which is not loaded"
        return Check(name, False, detail, "sudo modprobe -a vboxnetadp vboxnetflt")
    return Check(name, True, f"{found}; {wanted} will be made when it is needed")
