"""A VirtualBox host: a machine of our own QEMU driver."""

from __future__ import annotations

import shlex
import subprocess
import time
from typing import TYPE_CHECKING

from pytest_vmfest.errors import VmfestError
from pytest_vmfest.specs import HardwareModel
from tests.lane import parcel
from tests.lane.place import Place, PlaceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest import Node, Server
    from pytest_vmfest.specs import ImageModel

MEMORY_MIB = 4096
"""Room for six machines at once."""
HARDWARE = HardwareModel("virtualbox-host", memory_mib=MEMORY_MIB, cpus=1)
"""Two hosts with a processor each do more than with two, on as few as a CI's machine has."""
ANSWER_S = 150.0
LATELY_S = 900
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class Host(Place):
    """One booted host."""

    def __init__(
        self,
        server: Server,
        image: ImageModel,
        name: str,
        say: Callable[[str], None],
    ) -> None:
        """Boot it and bring the project in; `PlaceError`, or `WheelsError` without packages."""
        super().__init__(f"host {name}", say)
        began = time.monotonic()
        try:
            self.node: Node = server.launch(f"virtualbox-host-{name}", image=image, hardware=HARDWARE)
        except VmfestError as error:
            raise PlaceError(f"{self.name} did not boot: {error}") from error
        say(f"{self.name} answers after {time.monotonic() - began:.0f} s")
        try:
            self._boot_id = self.run(f"ls /dev/vboxdrv /dev/vboxnetctl >&2 && {_BOOT_ID}")
            self.about = self.bring_project(server.home)
        except PlaceError:
            self.destroy()
            raise

    def destroy(self) -> None:
        """Destroy its machine, hung or not."""
        self.node.destroy()
        self._say(f"{self.name} is destroyed")

    def answers(self) -> bool:
        """Whether the guest still runs, without a reboot."""
        try:
            return self.run(_BOOT_ID, ANSWER_S) == self._boot_id
        except PlaceError:
            return False

    def marks(self) -> set[str]:
        """The emulator's marks in the logs of all machines that ran lately."""
        look = (
            "import time; from tests.lane.keeper import *; "
            f"print(*marks_since(Path({parcel.KEPT!r}), time.time() - {LATELY_S}), sep=chr(10))"
        )
        try:
            return set(self.run(f"cd {parcel.ROOT}/project && python3 -c {shlex.quote(look)}").splitlines())
        except PlaceError as error:
            return {f"the host does not answer any more ({str(error).splitlines()[0]})"}

    def console(self) -> str:
        """The end of what its serial console got."""
        return self.node.console()[-20_000:]

    def open(self, command: str, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Run shell text in the guest over an SSH connection of its own; `PlaceError` if it is gone."""
        try:
            first, *rest = shlex.split(self.node.ssh_command)
        except VmfestError as error:
            raise PlaceError(f"{self.name} is gone: {error.message}") from error
        words = [first, "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", *rest, command]
        return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
