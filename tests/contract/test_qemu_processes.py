"""What only real processes can show: killed, stuck, orphaned, half-created, and at odds with the store."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pytest_vmfest.drivers import load_driver
from pytest_vmfest.drivers.base import DriverSettings, MachineState
from pytest_vmfest.errors import (
    DestroyError,
    DriverError,
    ImageInvalidError,
    MachineStateError,
    StoreError,
    WaitTimeoutError,
)
from pytest_vmfest.specs import DirectBoot, HardwareModel
from pytest_vmfest.waiting import Deadline, wait_for

OFF, RUNNING, ABORTED = MachineState.POWERED_OFF, MachineState.RUNNING, MachineState.ABORTED
OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")


def edit_record(lab, **changes):
    """Change what the machine's record says."""
    path = lab.home / "machines" / "m" / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_machine_ended_by_sigterm_is_aborted(qemu_lab):
    """QEMU ends in order on SIGTERM, but neither guest nor user wanted that."""
    qemu_lab.boot()
    os.kill(qemu_lab.pid("m"), signal.SIGTERM)
    qemu_lab.await_state("m", ABORTED)


def test_a_stuck_process(qemu_lab, monkeypatch):
    """A QEMU that does not answer counts as running, and can be powered down and destroyed."""
    monkeypatch.setattr("pytest_vmfest.drivers.qemu.runner._STATUS_TIMEOUT_S", 0.5)
    monkeypatch.setattr("pytest_vmfest.drivers.qemu.runner._QUIT_TIMEOUT_S", 0.5)
    qemu_lab.boot()
    os.kill(qemu_lab.pid("m"), signal.SIGSTOP)
    assert qemu_lab.driver.state("m") is RUNNING
    qemu_lab.driver.power_down("m")
    assert qemu_lab.driver.state("m") is OFF
    qemu_lab.start()
    os.kill(qemu_lab.pid("m"), signal.SIGSTOP)
    began = time.monotonic()
    qemu_lab.driver.destroy("m")
    assert time.monotonic() - began < 1


def test_a_machine_killed_while_it_is_stopped(qemu_lab):
    """Waiting for the guest's shutdown ends when its QEMU dies."""
    qemu_lab.image.disk.write_bytes(bytes(1 << 20))  # nothing that heeds the power button
    qemu_lab.driver.create(qemu_lab.spec())
    qemu_lab.driver.start("m", qemu_lab.deadline)
    qemu_lab.driver.pause("m")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(qemu_lab.driver.stop, "m", qemu_lab.deadline)
        qemu_lab.await_state("m", RUNNING)  # which stop sees to first
        qemu_lab.kill("m")
        with pytest.raises(MachineStateError, match="killed while the guest shut down"):
            stopping.result(timeout=30)
    assert qemu_lab.driver.state("m") is ABORTED


def test_a_process_that_the_record_does_not_tell_of(qemu_lab):
    """Its starter was killed before it could write down the pid: destroy finds QEMU by its folder."""
    qemu_lab.boot()
    pid = qemu_lab.pid("m")
    edit_record(qemu_lab, process=None, starting=True)
    qemu_lab.driver.destroy("m")
    assert not psutil.pid_exists(pid)


def test_a_machine_destroyed_by_another_process(qemu_lab):
    """Its starter stays its parent: when that closes, or asks for the machine, no zombie is left."""
    code = (
        "import sys; from pathlib import Path; from pytest_vmfest.drivers import load_driver;"
        "from pytest_vmfest.drivers.base import DriverSettings;"
        "load_driver('qemu', DriverSettings(Path(sys.argv[1]))).destroy('m')"
    )
    qemu_lab.boot()
    subprocess.run([sys.executable, "-c", code, str(qemu_lab.home)], check=True)
    assert qemu_lab.driver.machines() == []
    assert [line for line in qemu_lab.left_over() if not line.startswith("zombie")] == []
    qemu_lab.driver.destroy("m")
    assert qemu_lab.left_over() == []


def test_a_saved_state_that_nobody_wrote_down(qemu_lab):
    """What a save leaves that was killed in its middle is in nobody's way."""
    qemu_lab.boot()
    qemu_lab.driver.save_state("m", qemu_lab.deadline)
    edit_record(qemu_lab, saved=False)
    qemu_lab.start()
    qemu_lab.type("m", "half a ")
    qemu_lab.driver.save_state("m", qemu_lab.deadline)
    qemu_lab.driver.start("m", qemu_lab.deadline)
    qemu_lab.expect_line("m", "half a line", "line")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "m"}'])
def test_a_half_created_or_damaged_machine(qemu_lab, content):
    """It shows in the listing, other calls name the damage or say that it is none; destroy removes it."""
    qemu_lab.boot()
    record = qemu_lab.home / "machines" / "m" / "machine.json"
    if content is None:
        record.unlink()
    else:
        record.write_text(content)
    (info,) = qemu_lab.driver.machines()
    assert (info.name, info.state, info.image) == ("m", ABORTED, "")
    with pytest.raises(DriverError, match="machine"):
        qemu_lab.driver.start("m", qemu_lab.deadline)
    qemu_lab.driver.destroy("m")


def test_a_recycled_pid_is_not_touched(qemu_lab):
    """When another process has the recorded pid, the machine is dead and the process is left alone."""
    qemu_lab.boot()
    process = json.loads((qemu_lab.home / "machines/m/machine.json").read_text())["process"]
    qemu_lab.kill("m")
    qemu_lab.await_state("m", ABORTED)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        edit_record(qemu_lab, process={**process, "pid": stranger.pid})
        assert qemu_lab.driver.state("m") is ABORTED
        qemu_lab.driver.power_down("m")
        edit_record(qemu_lab, process={**process, "pid": stranger.pid})
        qemu_lab.driver.destroy("m")
        assert stranger.poll() is None
        stranger.kill()


def test_many_ask_one_machine_at_once(qemu_lab):
    """Drivers that did not start the machine share its one line, each waiting for its turn."""
    qemu_lab.boot()
    others = [qemu_lab.another_driver() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(lambda driver: [driver.state("m") for _ in range(3)], others))
    assert states == [[RUNNING] * 3] * 6
    for driver in others:
        driver.close()


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        (HardwareModel("huge", memory_mib=1 << 30, cpus=1), "memory"),
        (HardwareModel("many", memory_mib=64, cpus=5000), "CPUs"),
    ],
)
def test_qemu_that_does_not_start(qemu_lab, hardware, said):
    """The error quotes what QEMU said; no process is left, and the machine is powered off."""
    qemu_lab.driver.create(qemu_lab.spec(hardware=hardware))
    with pytest.raises(DriverError, match=f"machine 'm': QEMU did not start: .*{said}"):
        qemu_lab.driver.start("m", qemu_lab.deadline)
    assert qemu_lab.driver.state("m") is OFF
    assert not [line for line in qemu_lab.left_over() if "process" in line]


def test_the_cpu_model_is_that_of_whoever_starts(qemu_lab):
    """An unknown model fails the start, quoted, with what sets it; a driver with another one starts it."""

    def driver(cpu):
        return load_driver("qemu", DriverSettings(qemu_lab.home, accel="tcg", cpu=cpu))

    qemu_lab.driver.create(qemu_lab.spec())
    with pytest.raises(DriverError, match="unable to find CPU model 'abacus'") as caught:
        driver("abacus").start("m", qemu_lab.deadline)
    assert "--vm-cpu" in caught.value.hint
    assert not [line for line in qemu_lab.left_over() if "process" in line]
    richer = driver("EPYC")
    richer.start("m", qemu_lab.deadline)
    assert qemu_lab.driver.state("m") is RUNNING
    pid = int((qemu_lab.home / "machines/m/qemu.pid").read_text())
    command = psutil.Process(pid).cmdline()
    assert command[command.index("-cpu") + 1] == "EPYC"
    richer.close()


def test_a_start_that_has_no_time(qemu_lab):
    """At the deadline the process is ended again."""
    qemu_lab.driver.create(qemu_lab.spec())
    with pytest.raises(WaitTimeoutError):
        qemu_lab.driver.start("m", Deadline(0))
    assert qemu_lab.driver.state("m") is OFF
    assert not [line for line in qemu_lab.left_over() if "process" in line]
    qemu_lab.start()


@pytest.mark.parametrize("moment", ["spawn", "nat.forwards"])
def test_an_interrupt_in_the_middle_of_a_start(qemu_lab, monkeypatch, moment):
    """Ctrl-C leaves no process, even if it comes before anybody has noted its pid."""
    place = f"pytest_vmfest.drivers.qemu.runner.{moment}"
    real = pkgutil.resolve_name(place)

    def interrupted(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    qemu_lab.driver.create(qemu_lab.spec())
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            qemu_lab.driver.start("m", qemu_lab.deadline)
    assert qemu_lab.driver.state("m") is OFF
    assert not [line for line in qemu_lab.left_over() if "process" in line]
    qemu_lab.start()


def test_a_store_with_a_long_path(tmp_path, qemu_lab):
    """Unix sockets end at 107 characters; the store's path may be longer."""
    home = tmp_path / ("long-" * 30)
    home.mkdir()
    lab = type(qemu_lab)(home)
    lab.boot()
    other = lab.another_driver()
    other.create_network("net")
    other.pause("m")
    assert lab.driver.state("m") is MachineState.PAUSED
    other.remove_network("net")
    other.destroy("m")
    other.close()
    lab.driver.close()
    assert lab.left_over() == []


def test_a_store_that_cannot_be_written_to(qemu_lab):
    """The error names the place; nothing is left."""
    (qemu_lab.home / "machines").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="machines"):
        qemu_lab.driver.create(qemu_lab.spec())
    (qemu_lab.home / "machines").unlink()


def test_no_space_left(qemu_lab, monkeypatch):
    """A full file system is told as such, with what to do; nothing is left of the machine."""

    def full(source, target):
        raise OSError(28, "No space left on device")

    qemu_lab.driver.check_image(qemu_lab.image)
    monkeypatch.setattr("pytest_vmfest.drivers.qemu.disks.shutil.copyfile", full)
    with pytest.raises(StoreError, match=r"(?s)No space left.*VMFEST_HOME"):
        qemu_lab.driver.create(qemu_lab.spec())
    assert qemu_lab.left_over() == []


def test_what_cannot_be_removed_is_told(qemu_lab, monkeypatch):
    """A destroy that leaves something behind is an error that names it."""
    qemu_lab.driver.create(qemu_lab.spec())
    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmfest.drivers.qemu.record.shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(DestroyError, match=r"machine 'm': cannot remove disk\.qcow2"):
            qemu_lab.driver.destroy("m")


def test_an_image_replaced_under_its_name(qemu_lab):
    """A machine that is created after the image's file has changed runs on the new content."""
    qemu_lab.driver.create(qemu_lab.spec("old"))
    qemu_lab.driver.destroy("old")
    qemu_lab.image.disk.write_bytes(bytes(2 << 20))
    qemu_lab.driver.create(qemu_lab.spec())
    shown = subprocess.run(
        ["qemu-img", "info", "--output=json", qemu_lab.home / "machines/m/disk.qcow2"],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)["virtual-size"] == 2 << 20


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vmdk"])
def test_images_of_every_format(qemu_lab, kind):
    """A guest boots from any format, and its writes go to the machine's own disk."""
    disk = qemu_lab.home / f"disk.{kind}"
    subprocess.run(["qemu-img", "convert", "-O", kind, qemu_lab.image.disk, disk], check=True)
    before = disk.read_bytes()
    qemu_lab.image = replace(qemu_lab.image, disk=disk, format=kind)
    qemu_lab.boot()
    qemu_lab.keep_on_disk("m", "mine")
    qemu_lab.driver.power_down("m")
    qemu_lab.start()
    assert qemu_lab.kept_on_disk("m") == "mine"
    assert disk.read_bytes() == before


def test_direct_boot_files_are_looked_for(qemu_lab):
    """A kernel that is missing is told before anything is made."""
    boot = DirectBoot(qemu_lab.home / "no-kernel", None, "")
    with pytest.raises(ImageInvalidError, match="no-kernel"):
        qemu_lab.driver.create(qemu_lab.spec(image=replace(qemu_lab.image, direct_boot=boot)))


@pytest.mark.skipif(not OVMF.exists(), reason="OVMF is not installed")
def test_efi_firmware(qemu_lab):
    """An image that boots by EFI gets OVMF, with variables of its own; snapshots work there too."""
    image = replace(qemu_lab.image, firmware="efi")
    hardware = HardwareModel("efi", memory_mib=192, cpus=1)
    qemu_lab.driver.create(qemu_lab.spec(image=image, hardware=hardware))
    qemu_lab.driver.start("m", qemu_lab.deadline)
    qemu_lab.await_console("m", "BdsDxe")
    qemu_lab.driver.take_snapshot("m", "s", qemu_lab.deadline)
    qemu_lab.driver.revert("m", "s", qemu_lab.deadline)
    wait_for(lambda: qemu_lab.driver.state("m") is RUNNING, qemu_lab.deadline, what="running")
