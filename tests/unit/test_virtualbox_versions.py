"""What differs between VirtualBox's versions."""

from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers.virtualbox.versions import KNOWN, api_for
from pytest_vmfest.errors import DriverUnavailableError


class Raw:
    """Takes `createMachine` and keeps its arguments."""

    def createMachine(self, *arguments):  # noqa: N802
        """VirtualBox's own name of the call."""
        self.arguments = arguments
        return "machine"


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        ("7_0", ("f", "n", ["/g"], "Linux_64", "", "", "", "")),
        ("7_1", ("f", "n", 1, ["/g"], "Linux_64", "", "", "", "")),
        ("7_2", ("f", "n", 1, ["/g"], "Linux_64", "", "", "", "")),
    ],
)
def test_machines_are_created_with_each_versions_arguments(version, arguments):
    """The platform came with 7.1, between name and groups."""
    raw = Raw()
    made = api_for(version, "x").create_machine(SimpleNamespace(_i=raw), "f", "n", ("/g",), "Linux_64")
    assert raw.arguments == arguments
    assert made._i == "machine"


@pytest.mark.parametrize("version", KNOWN)
def test_settings_are_where_each_version_has_them(version):
    """The firmware's and the clock's settings moved to objects of their own."""
    raw = SimpleNamespace(
        firmwareSettings="new firmware",
        BIOSSettings="old firmware",
        platform="platform",
        audioSettings=SimpleNamespace(adapter="sound"),
        graphicsAdapter="graphics",
    )
    machine, api, new = SimpleNamespace(_i=raw), api_for(version, "x"), version != "7_0"
    assert api.firmware(machine) == ("new firmware" if new else raw)
    assert api.board(machine) == ("new firmware" if new else "old firmware")
    assert api.clock(machine) == ("platform" if new else raw)
    assert (api.audio(machine), api.graphics(machine)) == ("sound", "graphics")


@pytest.mark.parametrize("version", ["6_1", "8_0", ""])
def test_a_version_that_nobody_has_looked_at(version):
    """It is refused, with the versions that work."""
    with pytest.raises(DriverUnavailableError, match=r"8.8 is not known.*\n.*7.0, 7.1, 7.2"):
        api_for(version, "8.8")
