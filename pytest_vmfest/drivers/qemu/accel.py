"""KVM or emulation: prove that KVM works here by running a small guest under it, and remember the verdict.

A ``/dev/kvm`` that opens, and even a virtual machine that starts, prove little. Some cloud hosts offer a
KVM that interprets guest kernels in software, at about a million instructions per second: the firmware
alone takes seconds there and a stock kernel never gets past unpacking itself. QEMU's own
``-accel kvm -accel tcg`` falls back only where ``/dev/kvm`` does not open. So a probe guest (``probe.S``,
shipped assembled as ``probe.bin``) does a measured amount of a kernel's work against a deadline. It takes
about 0.1 s where KVM works, and 0.2 s under emulation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pytest_vmfest.errors import ConfigurationError, DriverUnavailableError
from pytest_vmfest.folders import make_private
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

KVM_CPU = "host"
"""The CPU model that KVM is probed with. A machine that is given another one under KVM has no such proof."""

PROBE_TIMEOUT_S = 2.5

_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CACHE_NAME = "accel.json"
_LOCK_TIMEOUT_S = 10.0

_GUEST = Path(__file__).with_name("probe.bin")
_DISK_SIZE = 1 << 20
_PASSED = 0x2A << 1 | 1  # isa-debug-exit turns the value that the guest writes into this exit status

# What the guest was doing after the last letter that it wrote to the debug console.
_STEPS = {
    "": "in the firmware",
    "d": "reading its disk",
    "m": "asking the firmware for the memory map",
    "p": "computing in protected mode",
    "l": "computing in long mode",
    "h": "computing at kernel addresses",
    "c": "using CPUID and the time stamp counter",
    "f": "handling page faults",
    "t": "waiting for timer interrupts",
    ".": "leaving",
}


@dataclass(frozen=True)
class Accel:
    """The accelerator to use. ``reason`` says in one line why, for the report header."""

    name: Literal["kvm", "tcg"]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether KVM is worth using, why, and what could be done about it."""

    works: bool
    reason: str
    hint: str = ""


def choose_accel(requested: str, qemu: str, cache_dir: Path) -> Accel:
    """The accelerator for machines run by the program ``qemu``.

    ``requested`` is ``auto`` (KVM if it is proved to work, else TCG; never raises), ``kvm`` (raises
    `DriverUnavailableError` if it does not work) or ``tcg`` (asks nothing). The probe's verdict is kept in
    ``cache_dir`` until the host boots anew or QEMU changes. ``kvm`` does not believe a kept "no": the
    host may have been overloaded when it was probed.
    """
    if requested == "tcg":
        return Accel("tcg", "asked for")
    if requested not in ("auto", "kvm"):
        raise ConfigurationError(f"unknown accelerator {requested!r}", hint="known: auto, kvm, tcg")
    demanded = requested == "kvm"
    try:
        verdict = _check_device() or _kept_or_probed(qemu, cache_dir, believe_no=not demanded)
    except OSError as error:
        verdict = Verdict(False, f"it could not be tried: {error}")
    if verdict.works:
        return Accel("kvm", verdict.reason)
    if demanded:
        raise DriverUnavailableError(f"KVM cannot be used: {verdict.reason}", hint=verdict.hint)
    return Accel("tcg", f"no KVM: {verdict.reason}" + (f" ({verdict.hint})" if verdict.hint else ""))


def run_probe(
    qemu: str, *, accel: str = "kvm", cpu: str = KVM_CPU, timeout_s: float = PROBE_TIMEOUT_S
) -> Verdict:
    """Run the probe guest once and wait for its end. Whatever happens, its process is gone afterwards.

    Raises `OSError` if ``qemu`` cannot be run at all.
    """
    deadline = Deadline(timeout_s)
    with _unnamed_file() as disk, _unnamed_file() as console, _unnamed_file() as errors:
        disk.write(_GUEST.read_bytes())
        disk.truncate(_DISK_SIZE)  # the firmware reads no disk that is smaller than a cylinder
        command = [*_dying_with_us(), qemu, *_arguments(accel, cpu), *_disk_arguments(disk)]
        status = _run(command, disk, console, errors, deadline)
        step = _STEPS.get(_content(console)[-1:], "somewhere")
        complaints = [line for line in _content(errors).splitlines() if line and "warning:" not in line]
    if status == _PASSED:
        return Verdict(True, f"the probe guest ran in {deadline.elapsed_s:.2f} s")
    if status is None:
        return Verdict(
            False, f"{_DEVICE} opens, but the probe guest did not finish in {timeout_s:g} s: still {step}"
        )
    if complaints:
        return Verdict(False, f"QEMU ended with status {status}: {complaints[0]}")
    return Verdict(False, f"the probe guest failed (status {status}) while {step}")


def _check_device() -> Verdict | None:
    """What is wrong with the device file, which costs next to nothing to find out; None if it opens."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict(False, f"there is no {_DEVICE}", "switch virtualization on in the host's firmware")
    except PermissionError:
        return Verdict(
            False,
            f"no permission to open {_DEVICE}",
            "join the group kvm: sudo usermod -aG kvm $USER, then log in anew",
        )
    except OSError as error:
        return Verdict(False, f"{_DEVICE} does not open: {error.strerror}")
    return None


# --- the probe guest's process ---------------------------------------------------------------------


def _arguments(accel: str, cpu: str) -> list[str]:
    return [
        *("-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", accel, "-cpu", cpu, "-m", "64"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon", "stdio"),
    ]


def _disk_arguments(disk: IO[bytes]) -> list[str]:
    return ["-drive", f"file=/proc/self/fd/{disk.fileno()},format=raw,if=virtio,readonly=on"]


def _unnamed_file() -> IO[bytes]:
    """A file in memory without a name: nothing can be left behind, and no folder has to be writable."""
    return os.fdopen(os.memfd_create("vmfest-probe"), "r+b", buffering=0)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _dying_with_us() -> list[str]:
    """A command prefix by which the kernel kills the guest if we are killed (util-linux; best effort)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _run(
    command: list[str], disk: IO[bytes], console: IO[bytes], errors: IO[bytes], deadline: Deadline
) -> int | None:
    """Run ``command`` and return its exit status; None if it had to be killed at the deadline."""
    # Output goes to files: a pipe would be held open by whatever the process might leave behind.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=errors,
        pass_fds=(disk.fileno(),),
        start_new_session=True,
    )
    try:
        return process.wait(deadline.remaining_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- the kept verdict ------------------------------------------------------------------------------


def _kept_or_probed(qemu: str, cache_dir: Path, *, believe_no: bool) -> Verdict:
    """The verdict kept for this very host boot and QEMU, or the probe's; one process probes for all."""
    program = shutil.which(qemu)
    if program is None:
        return Verdict(False, f"there is no program {qemu}")
    key = _circumstances(program)
    cache = cache_dir / _CACHE_NAME
    kept = _read(cache, key, believe_no)
    if kept is None:
        with _only_one(cache):
            kept = _read(cache, key, believe_no)  # another process may have probed while we waited
            if kept is None:
                kept = run_probe(program, timeout_s=PROBE_TIMEOUT_S)
                _write(cache, key, kept)
    return kept


def _circumstances(program: str) -> dict[str, Any]:
    """All that a verdict depends on. QEMU's file stands for its version: asking it would take longer."""
    binary = Path(program).resolve()
    facts = binary.stat()
    guest = hashlib.sha256(_GUEST.read_bytes())
    guest.update(repr((_arguments("kvm", KVM_CPU), PROBE_TIMEOUT_S)).encode())
    return {
        "boot": _BOOT_ID.read_text().strip(),
        "kernel": os.uname().release,
        "qemu": str(binary),
        "qemu_mtime_ns": facts.st_mtime_ns,
        "qemu_size": facts.st_size,
        "probe": guest.hexdigest(),
    }


def _read(cache: Path, key: dict[str, Any], believe_no: bool) -> Verdict | None:
    try:
        kept = json.loads(cache.read_bytes())
        verdict = Verdict(**kept["verdict"])
        fits = kept["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict if fits and (verdict.works or believe_no) else None


def _write(cache: Path, key: dict[str, Any], verdict: Verdict) -> None:
    beside = cache.with_suffix(".new")
    with suppress(OSError):
        beside.write_text(json.dumps({"key": key, "verdict": asdict(verdict)}))
        beside.replace(cache)


@contextmanager
def _only_one(cache: Path) -> Iterator[None]:
    """Hold the cache's lock; where there can be none (read-only folder), go on without."""
    from filelock import FileLock  # here, as a kept verdict needs no lock

    lock = FileLock(f"{cache}.lock")
    try:
        make_private(cache.parent)
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except (OSError, NotImplementedError):  # filelock's Timeout is an OSError
        yield
        return
    try:
        yield
    finally:
        lock.release()
