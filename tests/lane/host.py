"""A VirtualBox host: a machine of our own QEMU driver, with the project brought into it."""

from __future__ import annotations

import gzip
import shlex
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.errors import VmfestError
from pytest_vmfest.specs import HardwareModel
from tests.lane import parcel, wheels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_vmfest import Node, Server
    from pytest_vmfest.specs import ImageModel

HARDWARE = HardwareModel("virtualbox-host", memory_mib=6144, cpus=2)
"""Room for six machines at once, on the two processors that emulation gains from."""
PREPARE_S = 300.0
ANSWER_S = 150.0
LATELY_S = 900
# Since OpenSSH 9.8 a server shuts out whoever connected without logging in, as one does who waits for it.
_LET_IN = "echo PerSourcePenalties no > /etc/ssh/sshd_config.d/lane.conf && systemctl reload ssh"
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"

# Without these a nested machine's timers starve it (VirtualBox's host is slow and its clock is emulated).
_EXTRA_DATA = {
    "TSCMode": "RealTSCOffset",
    "HostHzMax": "50",
    "HostHzFudgeFactorTimerCpu": "100",
    "HostHzFudgeFactorCatchUp100": "100",
    "HostHzFudgeFactorCatchUp200": "100",
    "HostHzFudgeFactorCatchUp400": "100",
}


class HostError(Exception):
    """The host cannot be used: it did not boot, or VirtualBox is not in order in there."""


@dataclass(frozen=True)
class About:
    """What the guest says of itself: ``virtualbox`` 7.2.22, ``python`` 3.14, ``kernel`` and ``cpu``."""

    virtualbox: str
    python: str
    kernel: str
    cpu: str


class Host:
    """One booted host."""

    def __init__(
        self,
        server: Server,
        image: ImageModel,
        number: int,
        tags: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        """Boot it; ``say`` is told each step. Raises `HostError`."""
        self.number = number
        self.machines: set[str] = set()
        """Starts of VirtualBox machines seen in there, as their logs are called."""
        self._say = say
        began = time.monotonic()
        try:
            self.node: Node = server.launch(
                f"virtualbox-host-{number}", image=image, hardware=HARDWARE, tags=tags
            )
        except VmfestError as error:
            raise HostError(f"host {number} did not boot: {error}") from error
        say(f"host {number} answers after {time.monotonic() - began:.0f} s")

    def destroy(self) -> None:
        """Destroy its machine, hung or not."""
        self.node.destroy()
        self._say(f"host {self.number} is destroyed")

    def answers(self) -> bool:
        """Whether the guest still runs, without a reboot."""
        probe = self.open(_BOOT_ID)
        try:
            return probe.communicate(timeout=ANSWER_S)[0].decode().strip() == self._boot_id
        except subprocess.TimeoutExpired:
            return False
        finally:
            probe.kill()
            probe.wait()

    def marks(self) -> set[str]:
        """The emulator's marks in the logs of all machines that ran lately."""
        look = (
            "import time; from tests.lane.keeper import *; "
            f"print(*marks_since(Path({parcel.KEPT!r}), time.time() - {LATELY_S}), sep=chr(10))"
        )
        try:
            return set(self._run(f"cd {parcel.ROOT}/project && python3 -c {shlex.quote(look)}").splitlines())
        except VmfestError as error:
            return {f"the host does not answer any more ({error.message.splitlines()[0]})"}

    def open(self, command: str, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Run shell text in the guest over an SSH connection of its own, whose three streams are pipes."""
        first, *rest = shlex.split(self.node.ssh_command)
        words = [first, "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", *rest, command]
        return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def prepare(self, server: Server) -> About:
        """Bring the project in and make VirtualBox ready; `HostError`, or `WheelsError` without packages."""
        try:
            self._run(_LET_IN)
            self._boot_id = self._run(_BOOT_ID)
            about = self._ask()
            wanted = wheels.requirements(parcel.PROJECT, about.virtualbox)
            packages = wheels.folder_with(wanted, about.python, server.home / "cache" / "lane")
            self._say(f"{len(wanted)} packages for Python {about.python} and VirtualBox {about.virtualbox}")
            self._send(server, packages, about.python)
            settings = "; ".join(
                f"VBoxManage setextradata global VBoxInternal/TM/{key} {value}"
                for key, value in _EXTRA_DATA.items()
            )
            self._run(f"set -e; ls /dev/vboxdrv /dev/vboxnetctl; {settings}")
        except VmfestError as error:
            raise HostError(f"host {self.number} is not in order: {error}") from error
        return about

    def _ask(self) -> About:
        said = self._run(
            "VBoxManage --version | tail -n 1; uname -r; "
            "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'; "
            "sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1"
        ).splitlines()
        if len(said) != 4:
            raise HostError(f"host {self.number} says of itself only: {said}")
        version, kernel, python, cpu = said
        # "7.2.22_Debianr12345": the release is what the SDK is named by.
        return About(version.partition("_")[0].partition("r")[0], python, kernel, cpu)

    def _send(self, server: Server, packages: Path, python: str) -> None:
        began = time.monotonic()
        sender = self.open(f"mkdir -p {parcel.ROOT} && tar -xz -C {parcel.ROOT}", stdin=subprocess.PIPE)
        assert sender.stdin is not None
        try:
            # An emulated processor unpacks sooner than it deciphers.
            # A pipe that breaks has its reason on the other side, which tells it below.
            with suppress(BrokenPipeError):
                with gzip.GzipFile(fileobj=sender.stdin, mode="wb", compresslevel=1) as packed:
                    parcel.write(packed, packages=packages, python=python, store=server.home)
            _, told = sender.communicate(timeout=PREPARE_S)
        except subprocess.TimeoutExpired as error:
            raise HostError(f"host {self.number} takes no files: {error}") from error
        finally:
            sender.kill()
            sender.wait()
        if sender.returncode:
            raise HostError(f"host {self.number} takes no files: {told.decode(errors='replace')}")
        self._run(
            f"cd {parcel.ROOT} && mkdir -p {parcel.WORK}/tmp {parcel.KEPT} && chmod -R go= {parcel.WORK} && "
            f"ln -s /usr/bin/python3 {parcel.PYTHON}"
        )
        self._say(f"project, packages and image are in the guest after {time.monotonic() - began:.1f} s")

    def _run(self, command: str) -> str:
        return self.node.check_output(command, timeout_s=PREPARE_S)
