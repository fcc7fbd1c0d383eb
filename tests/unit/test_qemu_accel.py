"""Choosing between KVM and emulation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from pytest_vmfest.drivers.qemu import accel
from pytest_vmfest.drivers.qemu.accel import Accel, choose_accel, run_probe
from pytest_vmfest.errors import ConfigurationError, DriverUnavailableError
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QEMU = "qemu-system-x86_64"
PASSED = "exit 85"

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


class FakeQemu:
    """A script in QEMU's place that counts how often it was run."""

    def __init__(self, folder: Path, script: str) -> None:
        self.runs_file = folder / "runs"
        self.program = folder / "fake-qemu"
        self.write(script)

    def write(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\necho $$ >> '{self.runs_file}'\n{script}\n")
        self.program.chmod(0o755)

    @property
    def runs(self) -> int:
        return len(self.runs_file.read_text().split()) if self.runs_file.exists() else 0


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device file that opens, wherever the tests run."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(accel, "_DEVICE", path)
    return path


@pytest.fixture
def fake_qemu(tmp_path: Path, device: Path) -> Callable[[str], FakeQemu]:
    return lambda script: FakeQemu(tmp_path, script)


@needs_qemu
def test_probe_guest_finishes_under_emulation() -> None:
    """The probe guest is right in itself: under TCG it gets through, well within its deadline."""
    verdict = run_probe(QEMU, accel="tcg", cpu="qemu64")

    assert verdict.works, verdict.reason


@needs_qemu
def test_probe_guest_tells_a_processor_that_lacks_something() -> None:
    """On a processor without long mode the probe fails, and names the step."""
    verdict = run_probe(QEMU, accel="tcg", cpu="qemu32")

    assert not verdict.works
    assert "long mode" in verdict.reason


@needs_qemu
def test_qemu_s_complaint_becomes_the_reason() -> None:
    """When QEMU itself refuses, its message is the reason."""
    verdict = run_probe(QEMU, accel="tcg", cpu="no-such-cpu")

    assert not verdict.works
    assert "no-such-cpu" in verdict.reason


def test_shipped_guest_is_what_its_source_says(tmp_path: Path) -> None:
    """probe.bin is exactly what probe.S assembles to."""
    if shutil.which("as") is None or shutil.which("ld") is None or os.uname().machine != "x86_64":
        pytest.skip("needs GNU binutils for x86-64")
    source = accel._GUEST.with_suffix(".S")
    assembled, linked = tmp_path / "probe.o", tmp_path / "probe.bin"

    subprocess.run(["as", "--64", "-mx86-used-note=no", source, "-o", assembled], check=True)
    link = ["ld", "-m", "elf_x86_64", "-Ttext", "0x7c00", "-e", "start", "--oformat", "binary"]
    subprocess.run([*link, assembled, "-o", linked], check=True)

    assert linked.read_bytes() == accel._GUEST.read_bytes()


def test_working_kvm_is_chosen(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """A probe guest that gets through means KVM."""
    qemu = fake_qemu(PASSED)

    chosen = choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert chosen.name == "kvm"
    assert "ran in" in chosen.reason


def test_hanging_probe_ends_in_tcg(
    fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that hangs is killed at the deadline with all its children, and TCG is chosen."""
    monkeypatch.setattr(accel, "PROBE_TIMEOUT_S", 1)
    qemu = fake_qemu(f"sleep 60 & echo $! >> '{tmp_path}/runs'; printf p; wait")
    deadline = Deadline(30)  # far less than the guest would take, far more than a loaded host needs

    chosen = choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert not deadline.expired
    assert chosen.name == "tcg"
    assert "did not finish in 1 s: still computing in protected mode" in chosen.reason
    script, child = (int(pid) for pid in qemu.runs_file.read_text().split())
    assert not psutil.pid_exists(script)
    # The child is init's to reap, which may take a moment (or for ever, where init is no real one).
    wait_for(lambda: _has_ended(child), Deadline(10), what="the child's end")


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_whole_deadline_is_within_three_seconds() -> None:
    """What an unusable KVM costs is promised to be at most 3 s."""
    assert accel.PROBE_TIMEOUT_S <= 2.5


def test_killed_guest_when_interrupted(
    fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the probe runs leaves no process."""
    qemu = fake_qemu("sleep 60")
    real_wait = subprocess.Popen.wait
    waited_for: list[int] = []

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            return real_wait(process)
        waited_for.append(process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert len(waited_for) == 1
    assert not psutil.pid_exists(waited_for[0])


@pytest.mark.parametrize("script", [PASSED, "exit 1"])
def test_verdict_is_kept(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, script: str) -> None:
    """A second choice takes the first one's verdict, good or bad, and runs nothing."""
    qemu = fake_qemu(script)

    first = choose_accel("auto", str(qemu.program), tmp_path / "cache")
    second = choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert first == second
    assert qemu.runs == 1


def test_verdict_ends_with_the_host_s_boot(
    fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the host has booted anew, the probe runs again."""
    qemu = fake_qemu("exit 1")
    choose_accel("auto", str(qemu.program), tmp_path / "cache")
    other_boot = tmp_path / "boot_id"
    other_boot.write_text("another\n")
    monkeypatch.setattr(accel, "_BOOT_ID", other_boot)

    choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert qemu.runs == 2


def test_verdict_ends_with_the_qemu(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """Another QEMU is probed again."""
    qemu = fake_qemu("exit 1")
    assert choose_accel("auto", str(qemu.program), tmp_path / "cache").name == "tcg"

    qemu.write(PASSED)

    assert choose_accel("auto", str(qemu.program), tmp_path / "cache").name == "kvm"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1, "verdict": {"colour": 2}}'])
def test_broken_cache_is_as_none(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, content: str) -> None:
    """A cache file that makes no sense is replaced by a good one."""
    qemu = fake_qemu(PASSED)
    (tmp_path / "accel.json").write_text(content)

    assert choose_accel("auto", str(qemu.program), tmp_path).name == "kvm"
    assert json.loads((tmp_path / "accel.json").read_text())["verdict"]["works"]


def test_unwritable_cache_is_no_cache(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """Where nothing can be kept, the probe decides each time."""
    qemu = fake_qemu(PASSED)
    (tmp_path / "file").touch()

    for _ in range(2):
        assert choose_accel("auto", str(qemu.program), tmp_path / "file" / "cache").name == "kvm"

    assert qemu.runs == 2


def test_many_at_once_probe_once(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """Those who ask while a probe runs wait for its verdict."""
    qemu = fake_qemu(f"sleep 0.3; {PASSED}")
    chosen: list[Accel] = []
    threads = [
        threading.Thread(
            target=lambda: chosen.append(choose_accel("auto", str(qemu.program), tmp_path / "cache"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [one.name for one in chosen] == ["kvm"] * 4
    assert qemu.runs == 1


def test_no_device_costs_nothing(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, device: Path) -> None:
    """Without /dev/kvm nothing is run, nothing is written, and the reason says so."""
    qemu = fake_qemu(PASSED)
    device.unlink()

    chosen = choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert chosen.name == "tcg"
    assert "there is no" in chosen.reason
    assert qemu.runs == 0
    assert not (tmp_path / "cache").exists()


def test_no_permission_tells_what_to_do(
    fake_qemu: Callable[[str], FakeQemu], tmp_path: Path, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that the user may not open ends in TCG with the command that mends it, on one line."""
    qemu = fake_qemu(PASSED)
    real_open = os.open

    def refusing_open(path: object, *args: int, **kwargs: int) -> int:
        if path == device:
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing_open)
    chosen = choose_accel("auto", str(qemu.program), tmp_path / "cache")

    assert chosen.name == "tcg"
    assert "no permission" in chosen.reason
    assert "usermod -aG kvm" in chosen.reason
    assert "\n" not in chosen.reason
    assert qemu.runs == 0


@pytest.mark.parametrize("make", ["missing", "no interpreter"])
def test_unusable_qemu_does_not_raise(tmp_path: Path, device: Path, make: str) -> None:
    """``auto`` answers even where QEMU is missing or cannot be executed."""
    program = tmp_path / "qemu"
    if make == "no interpreter":
        program.write_bytes(b"#!/no/such/interpreter\n")
        program.chmod(0o755)

    chosen = choose_accel("auto", str(program), tmp_path / "cache")

    assert chosen.name == "tcg"
    assert str(program) in chosen.reason


def test_demanded_kvm_that_fails_is_an_error(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """``kvm`` does not fall back: the error carries the probe's reason."""
    qemu = fake_qemu("echo 'qemu: failed to set MSR' >&2; exit 1")

    with pytest.raises(DriverUnavailableError, match="failed to set MSR"):
        choose_accel("kvm", str(qemu.program), tmp_path / "cache")


def test_demanded_kvm_is_tried_again(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """``kvm`` does not take a kept "no" for an answer, but a kept "yes"."""
    qemu = fake_qemu(f"test -e '{tmp_path}/good' && {PASSED}")
    assert choose_accel("auto", str(qemu.program), tmp_path / "cache").name == "tcg"
    (tmp_path / "good").touch()

    for _ in range(2):
        assert choose_accel("kvm", str(qemu.program), tmp_path / "cache").name == "kvm"

    assert qemu.runs == 2


def test_tcg_asks_nothing(fake_qemu: Callable[[str], FakeQemu], tmp_path: Path) -> None:
    """``tcg`` runs no probe."""
    qemu = fake_qemu(PASSED)

    assert choose_accel("tcg", str(qemu.program), tmp_path / "cache") == Accel("tcg", "asked for")
    assert qemu.runs == 0


def test_unknown_accelerator_is_refused(tmp_path: Path) -> None:
    """Anything but auto, kvm and tcg is a mistake."""
    with pytest.raises(ConfigurationError, match="whpx"):
        choose_accel("whpx", QEMU, tmp_path)
