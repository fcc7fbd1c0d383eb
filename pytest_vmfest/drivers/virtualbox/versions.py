"""What differs between the versions of VirtualBox's API, and where pyvbox's generated calls fit none of them.

pyvbox was generated from version 6.1. Since then attributes have moved to objects of their own, calls have
got more arguments, and ``MachineState`` has got a value in its middle. Everything of that kind is said here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pytest_vmfest.errors import DriverUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtualbox.library import IMachine, IVirtualBox


class Api70:
    """VirtualBox 7.0."""

    name: ClassVar[str] = "7_0"

    def create_machine(
        self, vbox: IVirtualBox, settings_file: str, name: str, groups: Sequence[str], os_type: str
    ) -> IMachine:
        """A new machine that is not registered yet."""
        from virtualbox.library import IMachine

        return IMachine(
            vbox._i.createMachine(
                settings_file, name, *self._platform(), list(groups), os_type, *self._rest()
            )
        )

    def firmware(self, machine: IMachine) -> Any:
        """The raw object that has ``firmwareType``."""
        return machine._i

    def board(self, machine: IMachine) -> Any:
        """The raw object that has ``IOAPICEnabled``, the logo's and the boot menu's settings."""
        return machine._i.BIOSSettings

    def clock(self, machine: IMachine) -> Any:
        """The raw object that has ``RTCUseUTC`` and ``chipsetType``."""
        return machine._i

    def audio(self, machine: IMachine) -> Any:
        """The raw object of the sound card, which has ``enabled``."""
        return machine._i.audioSettings.adapter

    def graphics(self, machine: IMachine) -> Any:
        """The raw object that has ``VRAMSize`` and ``graphicsControllerType``."""
        return machine._i.graphicsAdapter

    def _platform(self) -> tuple[Any, ...]:
        return ()

    def _rest(self) -> tuple[Any, ...]:
        return ("", "", "", "")  # flags, cipher, password id, password


class Api71(Api70):
    """VirtualBox 7.1: platforms, and settings grouped into objects."""

    name: ClassVar[str] = "7_1"

    _X86 = 1  # PlatformArchitecture_x86

    def firmware(self, machine: IMachine) -> Any:
        """The raw object that has ``firmwareType``."""
        return machine._i.firmwareSettings

    def board(self, machine: IMachine) -> Any:
        """The raw object that has ``IOAPICEnabled``, the logo's and the boot menu's settings."""
        return machine._i.firmwareSettings

    def clock(self, machine: IMachine) -> Any:
        """The raw object that has ``RTCUseUTC`` and ``chipsetType``."""
        return machine._i.platform

    def _platform(self) -> tuple[Any, ...]:
        return (self._X86,)


class Api72(Api71):
    """VirtualBox 7.2: as 7.1, as far as this driver goes."""

    name: ClassVar[str] = "7_2"


KNOWN: dict[str, type[Api70]] = {api.name: api for api in (Api70, Api71, Api72)}


def api_for(api_version: str, version: str) -> Api70:
    """What is to be done differently for VirtualBox ``version``, whose API says ``7_2`` or so.

    Raises `DriverUnavailableError` for versions that nobody has looked at.
    """
    check_known(api_version, version)
    return KNOWN[api_version]()


def check_known(api_version: str, version: str) -> None:
    """Raise `DriverUnavailableError` for versions that nobody has looked at."""
    if api_version not in KNOWN:
        known = ", ".join(name.replace("_", ".") for name in KNOWN)
        raise DriverUnavailableError(
            f"VirtualBox {version} is not known to this driver",
            hint=f"versions that work are {known}",
        )
