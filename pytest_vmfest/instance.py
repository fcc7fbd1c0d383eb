"""An instance: the handle on one disposable machine."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import PropertyKind
from pytest_vmfest.errors import MachineNotFoundError
from pytest_vmfest.keyboard import parse_keys
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from pytest_vmfest.drivers.base import Driver, MachineInfo, MachineState
    from pytest_vmfest.specs import Endpoint, ImageModel

# A machine's own work (power up, shut down, snapshot) takes seconds; these bound the pathological.
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
SNAPSHOT_TIMEOUT_S = 300.0


def last_lines(console: str, lines: int = 15) -> str:
    """The end of what a console said."""
    return "\n".join(console.rstrip().splitlines()[-lines:])


class Instance:
    """One machine, cloned from an image model; leaving its ``with`` block destroys it.

    >>> from pytest_vmfest import Server
    >>> server = Server(driver="fake")
    >>> with server.instance("backup-machine", "tiny", "micro") as machine:
    ...     machine.start()
    ...     machine.pause()
    ...     machine.resume()
    ...     machine.power_down()

    Every operation is idempotent: what is already so stays so. Errors are `DriverError` and its kin.
    """

    def __init__(self, driver: Driver, name: str, image: Callable[[], ImageModel]) -> None:
        """Take hold of an existing machine; use `Server.instance` or `Server.find`.

        ``image`` is asked when the model is needed, which it is not to operate the machine.
        """
        self._driver = driver
        self._find_image = image
        self.console_start = 0
        """How long the console was when it was last started by this object: its template's, if it has one."""
        self.name = name
        self.expected: list[re.Pattern[str]] = []
        """What `expect_console` allows its console to say."""
        self.before_destroy: Callable[[], None] = lambda: None
        """Called before the machine is destroyed by this object; raises nothing."""

    def __repr__(self) -> str:
        """``<Instance backup-machine>``."""
        return f"<Instance {self.name}>"

    def __enter__(self) -> Instance:
        """Return the instance itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy the machine."""
        self.destroy()

    @cached_property
    def image(self) -> ImageModel:
        """The model that the machine is a clone of; `ImageNotFoundError` if it is gone from the store."""
        return self._find_image()

    @property
    def driver(self) -> Driver:
        """The driver that runs the machine."""
        return self._driver

    @property
    def state(self) -> MachineState:
        """The machine's state now; `MachineNotFoundError` once it is destroyed."""
        return self._driver.state(self.name)

    @property
    def info(self) -> MachineInfo:
        """Everything that a listing shows of the machine."""
        for info in self._driver.machines():
            if info.name == self.name:
                return info
        raise MachineNotFoundError(f"there is no machine {self.name!r} any more")

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Power on, or go on from the saved state. Does not wait for the guest's services."""
        self.console_start = len(self.console())
        self._driver.start(self.name, Deadline(timeout_s))

    def pause(self) -> None:
        """Halt the virtual CPU."""
        self._driver.pause(self.name)

    def resume(self) -> None:
        """Let a paused machine go on."""
        self._driver.resume(self.name)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask the guest to shut down, and wait until it has."""
        self._driver.stop(self.name, Deadline(timeout_s))

    def power_down(self) -> None:
        """Cut the power."""
        self._driver.power_down(self.name)

    def save_state(self, timeout_s: float = SNAPSHOT_TIMEOUT_S) -> None:
        """Keep the memory on disk and power off; `start` goes on from there."""
        self._driver.save_state(self.name, Deadline(timeout_s))

    def destroy(self) -> None:
        """Remove every trace of the machine, in whatever state it is."""
        self.before_destroy()
        self._driver.destroy(self.name)

    def endpoint(self, timeout_s: float = START_TIMEOUT_S) -> Endpoint:
        """Where this host reaches the guest's port 22."""
        return self._driver.endpoint(self.name, Deadline(timeout_s))

    def forward(self, guest_port: int) -> Endpoint:
        """Open a way from a free loopback port to a TCP port of the running guest."""
        return self._driver.forward(self.name, guest_port)

    def console(self) -> str:
        """All that the guest wrote to its first serial port."""
        return self._driver.console(self.name)

    def console_since_start(self) -> str:
        """What the guest wrote since this object started it, or went back to a snapshot."""
        return self.console()[self.console_start :]

    def console_tail(self, lines: int = 15) -> str:
        """The console's last lines; empty if there is nothing, or no machine any more."""
        with suppress(MachineNotFoundError):
            return last_lines(self.console(), lines)
        return ""

    def expect_console(self, pattern: str) -> None:
        """Allow the console to say what would make the running test fail; see `Node.expect_console`."""
        self.expected.append(re.compile(pattern))

    def screenshot(self, path: Path) -> None:
        """Write the screen to ``path`` as PNG."""
        self._driver.screenshot(self.name, path)

    def send_keys(self, *inputs: str | float) -> None:
        """Type on the machine's keyboard: text, chords such as ``"<ctrl+alt+f2>"``, pauses in seconds."""
        self._driver.send_keys(self.name, parse_keys(*inputs))

    def guest_property(self, key: str) -> str:
        """A guest property of VirtualBox, such as ``/VirtualBox/GuestInfo/Net/0/V4/IP``; empty without one.

        Other hypervisors have none: `NotSupportedError`.
        """
        return self._driver.get_property(self.name, PropertyKind.GUEST, key)

    def set_guest_property(self, key: str, value: str) -> None:
        """Set a guest property of VirtualBox; an empty value removes it."""
        self._driver.set_property(self.name, PropertyKind.GUEST, key, value)

    def extra_data(self, key: str) -> str:
        """Extra data that VirtualBox keeps with the machine; empty without any.

        Other hypervisors have none: `NotSupportedError`.
        """
        return self._driver.get_property(self.name, PropertyKind.EXTRA, key)

    def set_extra_data(self, key: str, value: str) -> None:
        """Keep extra data with the machine in VirtualBox; an empty value removes it."""
        self._driver.set_property(self.name, PropertyKind.EXTRA, key, value)

    def snapshot(self, name: str, timeout_s: float = SNAPSHOT_TIMEOUT_S) -> None:
        """Keep disk and memory under ``name``."""
        self._driver.take_snapshot(self.name, name, Deadline(timeout_s))

    def revert(self, name: str, timeout_s: float = SNAPSHOT_TIMEOUT_S) -> None:
        """Go back to the snapshot ``name``, memory included."""
        self._driver.revert(self.name, name, Deadline(timeout_s))
        self.console_start = len(self.console())

    def snapshots(self) -> list[str]:
        """Names of the snapshots, oldest first."""
        return self._driver.snapshots(self.name)

    def delete_snapshot(self, name: str) -> None:
        """Forget the snapshot ``name``."""
        self._driver.delete_snapshot(self.name, name)
