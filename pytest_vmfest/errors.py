"""Every error that pytest-vmfest raises.

::

    VmfestError
    ├── ConfigurationError        an option, marker, factory argument or spec is wrong
    ├── StoreError                the image store or runtime folder cannot be used
    ├── ImageError
    │   ├── ImageNotFoundError    no installed model fits
    │   ├── ImageExistsError      the name is taken
    │   ├── ImageInvalidError     no disk image, truncated, wrong digest
    │   ├── ImageInUseError       instances still need the model
    │   ├── ImageFetchError       a download failed
    │   └── ImageBuildError       a recipe failed
    ├── DriverError               the hypervisor refused or failed
    │   ├── DriverUnavailableError  not installed, or not usable here
    │   ├── NotSupportedError     this driver cannot do that
    │   ├── ThawError             a machine cannot go on from a frozen one
    │   ├── MachineNotFoundError
    │   ├── MachineExistsError
    │   └── MachineStateError     not possible in the machine's present state
    ├── RemoteError               talking to the guest failed
    │   ├── AuthenticationError   the guest refused the login
    │   ├── HostKeyError          the guest is not who it should be
    │   ├── ConnectionLostError
    │   │   └── MachineGoneError  the machine is off, stands still, or its kernel panicked
    │   └── TransferError         put or get failed
    ├── ConsoleAlarmError         a guest's console told of trouble while a test used it
    ├── CommandError              a checked command exited with another status than 0
    ├── CommandTimeoutError       a command did not end in time
    ├── WaitTimeoutError          a condition did not come true in time
    ├── StartError                a machine did not become a connected node
    ├── GroupStartError           the same for a group, with every failure
    └── DestroyError              something of a machine is still there

Trouble of the infrastructure, whatever a test does (`VmfestError.infrastructure`), are: StoreError,
ImageFetchError, ImageBuildError, DriverError, DriverUnavailableError and ThawError (not the others below it),
StartError, GroupStartError, DestroyError; and of MachineGoneError and MachineStateError those that are raised
because the hypervisor died under the machine, or has halted it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_vmfest.remote import CommandResult


class VmfestError(Exception):
    """Base of all errors of this package.

    ``str(error)`` says what failed and where; ``hint``, on a line of its own, says what to do about it.
    """

    infrastructure: bool = False
    """Whether what the tests stand on has failed: a test that this ends is an error, not a failure."""

    def __init__(self, message: str, *, hint: str = "", infrastructure: bool | None = None) -> None:
        super().__init__(f"{message}\n  {hint}" if hint else message)
        self.message = message
        self.hint = hint
        if infrastructure is not None:
            self.infrastructure = infrastructure


class ConfigurationError(VmfestError):
    """An option, marker, factory argument or specification is wrong."""


class StoreError(VmfestError):
    """The image store or the runtime folder cannot be used (not writable, no space left)."""

    infrastructure = True


class ImageError(VmfestError):
    """Something is wrong with an image."""


class ImageNotFoundError(ImageError):
    """No installed image model fits the name or the template."""


class ImageExistsError(ImageError):
    """An image model of that name is already installed."""


class ImageInvalidError(ImageError):
    """The file is no disk image, is truncated, or its digest differs."""


class ImageInUseError(ImageError):
    """Instances still run on the model; ``users`` names them."""

    def __init__(self, message: str, *, users: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.users = tuple(users)


class ImageFetchError(ImageError):
    """An image could not be downloaded."""

    infrastructure = True


class ImageBuildError(ImageError):
    """A recipe could not build its image; ``log`` holds the last lines that its tools printed."""

    infrastructure = True

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class DriverError(VmfestError):
    """The hypervisor refused or failed."""

    infrastructure = True


class DriverUnavailableError(DriverError):
    """The hypervisor is not installed or cannot be used on this host."""


class NotSupportedError(DriverError):
    """The driver cannot do what was asked."""

    infrastructure = False


class ThawError(DriverError):
    """A machine cannot go on from a frozen one: that is gone, damaged, or does not fit this host."""


class MachineNotFoundError(DriverError):
    """There is no machine of that name."""

    infrastructure = False


class MachineExistsError(DriverError):
    """A machine of that name exists already."""

    infrastructure = False


class MachineStateError(DriverError):
    """The operation is not possible in the machine's present state."""

    infrastructure = False


class RemoteError(VmfestError):
    """Talking to the guest failed."""


class AuthenticationError(RemoteError):
    """The guest refused the login."""


class HostKeyError(RemoteError):
    """The guest presented another host key than the one its image was built with."""


class ConnectionLostError(RemoteError):
    """The connection to the guest broke, or the guest closed it."""


class MachineGoneError(ConnectionLostError):
    """The machine under the connection is off, destroyed or stands still, or its kernel has panicked."""


class TransferError(RemoteError):
    """A file or folder could not be copied to or from the guest."""


class ConsoleAlarmError(VmfestError):
    """A guest's console told of trouble while a test used it; ``line`` is what it said."""

    def __init__(self, message: str, *, line: str) -> None:
        super().__init__(message)
        self.line = line


class CommandError(VmfestError):
    """A checked command exited with a status other than 0; ``result`` holds its output."""

    def __init__(self, message: str, *, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result


class CommandTimeoutError(VmfestError):
    """A command did not end in time; ``stdout`` and ``stderr`` hold what it had written until then."""

    def __init__(self, message: str, *, command: str, timeout_s: float, stdout: str, stderr: str) -> None:
        super().__init__(message)
        self.command = command
        self.timeout_s = timeout_s
        self.stdout = stdout
        self.stderr = stderr


class WaitTimeoutError(VmfestError):
    """A condition did not come true before its deadline."""


class StartError(VmfestError):
    """A machine did not become a connected node.

    ``stage`` is one of turn, created, running, kernel, login, template, network, init_script;
    ``elapsed_s`` the seconds since the request; ``console_tail`` the last lines of the guest's console, and
    ``console`` all of it; ``node`` and ``machine`` are the names; ``kept`` has the name of the machine if it
    was left as it is.
    """

    infrastructure = True

    def __init__(
        self,
        message: str,
        *,
        stage: str,
        elapsed_s: float,
        node: str = "",
        machine: str = "",
        console: str = "",
        console_tail: str = "",
        hint: str = "",
        kept: Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.elapsed_s = elapsed_s
        self.node = node
        self.machine = machine
        self.console = console
        self.console_tail = console_tail
        self.kept = tuple(kept)


class GroupStartError(VmfestError):
    """A group did not start; ``failures`` maps each failed node's name to its error.

    ``kept`` has the names of the machines that were left as they are.
    """

    infrastructure = True

    def __init__(self, message: str, *, failures: dict[str, Exception], kept: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.failures = failures
        self.kept = tuple(kept)


def failed_starts(error: BaseException | None) -> list[StartError]:
    """The failures to start machines that an error tells of."""
    if isinstance(error, StartError):
        return [error]
    if isinstance(error, GroupStartError):
        return [failure for failure in error.failures.values() if isinstance(failure, StartError)]
    return []


class DestroyError(VmfestError):
    """Something of a machine is still there after it was destroyed."""

    infrastructure = True


def of_infrastructure(error: BaseException | None) -> bool:
    """Whether an error tells of trouble of the infrastructure.

    Our own errors say so themselves; others may be raised ``from`` one that does, or be a group of such.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, VmfestError):
            return error.infrastructure
        if isinstance(error, BaseExceptionGroup) and any(map(of_infrastructure, error.exceptions)):
            return True
        seen.append(error)
        error = error.__cause__
    return False


def clean_up_after(error: BaseException, clean_up: Callable[[], object]) -> None:
    """Clean up while ``error`` is on its way; what goes wrong then is added to it as a note."""
    try:
        clean_up()
    except Exception as failure:
        error.add_note(f"cleaning up after that failed, too: {failure}")


def all_or_raise(*clean_ups: Callable[[], object]) -> None:
    """Call all, whatever fails; then `DestroyError` tells each failure."""
    failures = []
    for clean_up in clean_ups:
        try:
            clean_up()
        except Exception as failure:
            failures.append(str(failure))
    if failures:
        raise DestroyError("\n".join(failures))
