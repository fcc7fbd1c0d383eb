"""VirtualBox's errors, told as ours: one place, with VirtualBox's own text kept."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import DriverError, DriverUnavailableError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Result codes of the API, by the names of its reference.
OBJECT_NOT_FOUND = 0x80BB0001
VM_ERROR = 0x80BB0003
FILE_ERROR = 0x80BB0004
INVALID_OBJECT_STATE = 0x80BB0007
INVALID_SESSION_STATE = 0x80BB000B

# The other side of the line is gone: VBoxSVC, or the process of a machine.
_DEAD = frozenset({0x80004004, 0x800706BA, 0x800706BE, 0x800706BF, 0x80010108})

DEVICE = Path("/dev/vboxdrv")
"""There as long as VirtualBox's kernel module is loaded."""

NO_MODULE = (
    "load VirtualBox's kernel module: sudo modprobe vboxdrv (Debian has it in the package virtualbox-dkms; "
    "with Secure Boot it has to be signed)"
)
KVM_HOLDS_CPU = (
    "sudo modprobe -r kvm_intel kvm_amd, or boot with kvm.enable_virt_at_load=0 on the kernel's command line "
    "(Linux 6.12 and later)"
)
# A process whose VBoxSVC has died finds no other; the next one starts it.
SERVICE_GONE = "run again; the service's log is VBoxSVC.log in VirtualBox's settings folder"

# What VirtualBox says, and what to do about it.
_REMEDIES = (
    (
        r"VERR_VM_DRIVER_(NOT_INSTALLED|LOAD_ERROR)|\(rc=-1908\)|/dev/vboxdrv\b"
        r"|[Kk]ernel driver (\(vboxdrv\) )?(is )?(either )?not (loaded|installed)",
        NO_MODULE,
    ),
    (
        r"VERR_(SVM_IN_USE|VMX_IN_VMX_ROOT_MODE)|being used by another hypervisor",
        f"KVM holds the CPU's virtualization: {KVM_HOLDS_CPU}",
    ),
    (
        r"VERR_(SVM_NO_SVM|VMX_NO_VMX|SVM_DISABLED|VMX_MSR_\w*DISABLED)|VT-x is (not available|disabled)"
        r"|AMD-V is (not available|disabled)",
        "switch virtualization (VT-x, AMD-V) on in the host's firmware",
    ),
    (
        r"VERR_DISK_FULL|No space left on device",
        "free some space, or set VMFEST_HOME to a folder on another file system",
    ),
    (r"/dev/vboxnetctl|VBoxNetAdpCtl", "load the module for host-only networks: sudo modprobe vboxnetadp"),
    (
        r"networks\.conf|not within the allowed ranges",
        "allow the address range in /etc/vbox/networks.conf, or use 192.168.56.0/21",
    ),
)


def code_of(error: BaseException) -> int | None:
    """The API's result code of an error that came through pyvbox or vboxapi, None for other errors."""
    for attribute in ("value", "errno", "hresult"):
        code = getattr(error, attribute, None)
        if isinstance(code, int) and not isinstance(error, OSError) and code & 0x80000000:
            return code & 0xFFFFFFFF
    return None


def text_of(error: BaseException) -> str:
    """What VirtualBox itself said."""
    text = str(getattr(error, "msg", None) or error)
    # The bindings put the code before the text, or in brackets behind it.
    text = re.sub(r"^0x[0-9a-f]{8} \((.*)\)$", r"\1", text.strip(), flags=re.IGNORECASE | re.DOTALL)
    return text or type(error).__name__


def is_dead(error: BaseException) -> bool:
    """Whether the other side of the line is gone."""
    return code_of(error) in _DEAD


def remedy_for(text: str) -> str:
    """What to do about something that VirtualBox says; empty if nothing is known."""
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, text):
            return remedy
    return ""


def as_ours(error: BaseException, doing: str) -> DriverError | StoreError:
    """Our error for one of VirtualBox's; ``doing`` is what could not be done."""
    if is_dead(error):
        return DriverUnavailableError(
            f"{doing}: VirtualBox's service (VBoxSVC) does not answer any more: {text_of(error)}",
            hint=SERVICE_GONE,
        )
    return told(doing, text_of(error))


def told(doing: str, text: str) -> DriverError | StoreError:
    """Our error for what VirtualBox said."""
    kind = StoreError if re.search(r"VERR_DISK_FULL|No space left on device", text) else DriverError
    return kind(f"{doing}: {text.strip()}", hint=remedy_for(text))


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn VirtualBox's errors into `DriverError` and its kin, with its own text; others pass."""
    try:
        yield
    except Exception as error:
        if code_of(error) is None:
            raise
        raise as_ours(error, doing) from error


def ignoring(error: BaseException, *codes: int) -> bool:
    """Whether the error is one of VirtualBox's with one of these result codes."""
    return code_of(error) in codes


def is_null(thing: Any) -> bool:
    """Whether an object of the API is none: pyvbox wraps null, too, and what it makes of it is true."""
    return thing is None or getattr(thing, "_i", thing) is None
