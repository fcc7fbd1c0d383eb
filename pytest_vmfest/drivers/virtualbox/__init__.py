"""The VirtualBox driver, through pyvbox."""

from pytest_vmfest.drivers.virtualbox.driver import VirtualBoxDriver

__all__ = ["VirtualBoxDriver"]
