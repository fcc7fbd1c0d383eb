"""Labs: a driver each, a store, an image, and what a test has to know beyond the driver's interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import sector_guest

from pytest_vmfest.drivers import load_driver
from pytest_vmfest.drivers.base import DriverSettings, MachineState
from pytest_vmfest.errors import ConnectionLostError
from pytest_vmfest.keyboard import parse_keys
from pytest_vmfest.specs import HardwareModel, ImageModel, Login, MachineSpec
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vmfest.drivers.base import Driver

TIMEOUT_S = 60
SMALLEST = HardwareModel("smallest", memory_mib=64, cpus=1)


class Lab:
    """A driver with a store of its own and an image that boots in a fraction of a second."""

    driver_name: str
    acpi = sector_guest.Q35
    network = "local"
    refused: tuple[str, ...] = ("permanent", "bridged")

    def __init__(self, home: Path) -> None:
        self.home = home
        disk = home / "sector.img"
        disk.write_bytes(sector_guest.disk(self.acpi))
        self.image = ImageModel("sector", disk, "raw")
        self.driver = self.another_driver()

    def another_driver(self) -> Driver:
        """A second driver with the same store."""
        return load_driver(self.driver_name, DriverSettings(self.home, accel="tcg"))

    def spec(self, name: str = "m", **changes: object) -> MachineSpec:
        """A small machine on the lab's image."""
        usual = {"name": name, "image": self.image, "hardware": SMALLEST, "network": self.network}
        return MachineSpec(**{**usual, **changes})

    def boot(self, name: str = "m", **changes: object) -> None:
        """Create and start a machine, and wait until its guest takes keys."""
        self.driver.create(self.spec(name, **changes))
        self.start(name)

    def start(self, name: str = "m") -> None:
        """Start, and wait until its guest takes keys."""
        before = self.driver.console(name)
        self.driver.start(name, self.deadline)
        self.await_console(name, "ready", since=before)
        wait_for(
            lambda: self.driver.console(name).endswith("\n"),
            self.deadline,
            what=f"the end of the line that {name!r} greets with",
            interval_s=0.01,
        )

    def await_console(self, name: str, text: str, *, since: str = "") -> None:
        """Wait until the guest has written ``text``."""
        wait_for(
            lambda: text in self.driver.console(name).removeprefix(since),
            self.deadline,
            what=f"{text!r} on the console of {name!r}",
            interval_s=0.01,
        )

    def await_state(self, name: str, state: MachineState) -> None:
        """Wait until the machine is in the state."""
        wait_for(lambda: self.driver.state(name) is state, self.deadline, what=str(state), interval_s=0.01)

    def type(self, name: str, *inputs: str) -> None:
        """Type on the machine's keyboard."""
        self.driver.send_keys(name, parse_keys(*inputs))

    def expect_line(self, name: str, line: str, *inputs: str) -> None:
        """Type, and wait until the guest says that the whole line was ``line``."""
        before = self.driver.console(name)
        self.type(name, *inputs, "<enter>")
        self.await_console(name, f"{line}\n", since=before)
        said = self.driver.console(name).removeprefix(before)
        assert said == f"{line}\n", f"the guest said {said!r}, not {line!r}"

    @property
    def deadline(self) -> Deadline:
        """Long enough for a busy host."""
        return Deadline(TIMEOUT_S)

    # --- what differs ------------------------------------------------------------------------------

    def keep_on_disk(self, name: str, text: str) -> None:
        """Let the guest write ``text`` to its disk."""
        raise NotImplementedError

    def kept_on_disk(self, name: str) -> str:
        """What the guest found on its disk when it booted last."""
        raise NotImplementedError

    def switch_off_inside(self, name: str) -> None:
        """Let the guest switch its machine off."""
        raise NotImplementedError

    def kill(self, name: str) -> None:
        """Let the hypervisor's process be killed."""
        raise NotImplementedError

    def start_elsewhere(self, name: str) -> None:
        """Create and start a machine from a process that ends thereafter."""
        arguments = [name, self.driver_name, self.network, str(self.home), str(self.image.disk)]
        subprocess.run([sys.executable, "-c", _ELSEWHERE, *arguments], check=True, timeout=TIMEOUT_S)

    def left_over(self) -> list[str]:
        """Processes and files of machines and networks."""
        raise NotImplementedError


class FakeLab(Lab):
    """The driver in memory."""

    driver_name = "fake"

    def keep_on_disk(self, name: str, text: str) -> None:
        self._remote(name).write_bytes("/etc/kept", text.encode(), self.deadline)

    def kept_on_disk(self, name: str) -> str:
        done = self._remote(name).execute("cat /etc/kept", input=None, deadline=self.deadline)
        return done.stdout.decode()

    def switch_off_inside(self, name: str) -> None:
        with pytest.raises(ConnectionLostError):
            self._remote(name).execute("poweroff", input=None, deadline=self.deadline)

    def kill(self, name: str) -> None:
        self.driver.abort(name)

    def start_elsewhere(self, name: str) -> None:
        elsewhere = self.another_driver()
        elsewhere.create(self.spec(name))
        elsewhere.start(name, self.deadline)
        elsewhere.close()

    def left_over(self) -> list[str]:
        return [info.name for info in self.driver.machines()]

    def _remote(self, name: str):
        return self.driver.remote(name, Login(), self.deadline)


_ELSEWHERE = """
import sys
from pathlib import Path
from pytest_vmfest.drivers import load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.specs import HardwareModel, ImageModel, MachineSpec
from pytest_vmfest.waiting import Deadline

name, driver, network, home, disk = sys.argv[1:]
driver = load_driver(driver, DriverSettings(Path(home), accel="tcg"))
image = ImageModel("sector", Path(disk), "raw")
hardware = HardwareModel("smallest", 64, 1)
driver.create(MachineSpec(name, image, hardware, network, tags={"run": "elsewhere"}))
driver.start(name, Deadline(60))
"""


class RealLab(Lab):
    """A driver that runs the guest for real: what is to be done inside is typed on the keyboard."""

    def keep_on_disk(self, name: str, text: str) -> None:
        before = self.driver.console(name)
        self.type(name, f"!{text}", "<enter>")
        self.await_console(name, "written", since=before)

    def kept_on_disk(self, name: str) -> str:
        said = [line for line in self.driver.console(name).splitlines() if line.startswith("ready ")]
        return said[-1].removeprefix("ready ").removeprefix("!")

    def switch_off_inside(self, name: str) -> None:
        self.type(name, "~", "<enter>")

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def pid(self, name: str) -> int:
        """The process of a running machine."""
        raise NotImplementedError


class QemuLab(RealLab):
    """QEMU, emulating: so the suite is the same on every host."""

    driver_name = "qemu"

    def left_over(self) -> list[str]:
        files = [str(path) for place in ("machines", "networks") for path in (self.home / place).glob("*")]
        processes = [
            f"process {process.pid}: {process.info['name']}"
            for process in psutil.process_iter(["name", "cwd"])
            if (process.info["cwd"] or "").startswith(str(self.home))
        ]
        zombies = [
            f"zombie {child.pid} {child.name()}"
            for child in psutil.Process().children()
            if child.status() == psutil.STATUS_ZOMBIE
        ]
        return files + processes + zombies

    def pid(self, name: str) -> int:
        """QEMU's process, as other processes learn of it."""
        record = json.loads((self.home / "machines" / name / "machine.json").read_text())
        return record["process"]["pid"]


class VirtualBoxLab(RealLab):
    """The VirtualBox of whoever runs the tests; its own machines are left alone."""

    driver_name = "virtualbox"
    acpi = sector_guest.VIRTUALBOX
    network = "nat"  # the guest asks for no address
    refused = ()

    def left_over(self) -> list[str]:
        from pytest_vmfest.drivers.virtualbox.connection import connect

        vbox = connect(self.driver.settings).vbox
        here = str(self.home)
        things = [str(machine.settings_file_path) for machine in vbox.machines]
        things += [str(medium.location) for medium in vbox.hard_disks]
        files = [str(path) for place in ("machines", "networks") for path in self._ours(place).glob("*")]
        processes = [f"process {process.pid}" for process in _headless() if here in _open_files(process)]
        return [thing for thing in things if here in thing] + files + processes

    def pid(self, name: str) -> int:
        (found,) = [process.pid for process in _headless() if name in process.cmdline()]
        return found

    def _ours(self, place: str) -> Path:
        return self.home / "virtualbox" / place


def _headless() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == "VBoxHeadless"]


def _open_files(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(file.path for file in process.open_files())
    return ""


def kinds() -> list[type[Lab]]:
    """The labs of all drivers; VirtualBox's where there is a VirtualBox."""
    from pytest_vmfest.drivers.virtualbox.diagnosis import why_not

    return [FakeLab, QemuLab, *([] if why_not(DriverSettings(Path())) else [VirtualBoxLab])]


@contextmanager
def opened(kind: type[Lab], home: Path) -> Iterator[Lab]:
    """A lab, of which nothing is left afterwards."""
    if kind.driver_name == "qemu" and not (shutil.which("qemu-system-x86_64") and shutil.which("qemu-img")):
        pytest.skip("QEMU is not installed (vmfest doctor --install)")
    lab = kind(home)
    yield lab
    for info in lab.driver.machines():
        lab.driver.destroy(info.name)
    lab.driver.close()
    assert lab.left_over() == []
