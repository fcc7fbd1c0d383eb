"""Disposable virtual machines for pytest.

The public names are loaded when they are first used, so that importing the plugin costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_vmfest.devices import (
        Dvd,
        ExistingDisk,
        NatRule,
        NewDisk,
        SharedFolder,
        StorageController,
    )
    from pytest_vmfest.drivers.base import MachineState
    from pytest_vmfest.drivers.fake import FakeDriver
    from pytest_vmfest.errors import (
        CommandError,
        CommandTimeoutError,
        DestroyError,
        GroupStartError,
        StartError,
        VmfestError,
        WaitTimeoutError,
    )
    from pytest_vmfest.factories import group_fixture, instance_fixture
    from pytest_vmfest.group import NodeGroup
    from pytest_vmfest.instance import Instance
    from pytest_vmfest.node import Node
    from pytest_vmfest.remote import CommandResult
    from pytest_vmfest.server import Server
    from pytest_vmfest.specs import HardwareModel, ImageModel

_HOMES = {
    "instance_fixture": "factories",
    "group_fixture": "factories",
    "Server": "server",
    "Instance": "instance",
    "MachineState": "drivers.base",
    "Node": "node",
    "NodeGroup": "group",
    "CommandResult": "remote",
    "ImageModel": "specs",
    "HardwareModel": "specs",
    "StorageController": "devices",
    "ExistingDisk": "devices",
    "NewDisk": "devices",
    "Dvd": "devices",
    "SharedFolder": "devices",
    "NatRule": "devices",
    "FakeDriver": "drivers.fake",
    "VmfestError": "errors",
    "CommandError": "errors",
    "CommandTimeoutError": "errors",
    "WaitTimeoutError": "errors",
    "StartError": "errors",
    "GroupStartError": "errors",
    "DestroyError": "errors",
}

__all__ = [
    "instance_fixture",
    "group_fixture",
    "Server",
    "Instance",
    "MachineState",
    "Node",
    "NodeGroup",
    "CommandResult",
    "ImageModel",
    "HardwareModel",
    "StorageController",
    "ExistingDisk",
    "NewDisk",
    "Dvd",
    "SharedFolder",
    "NatRule",
    "FakeDriver",
    "VmfestError",
    "CommandError",
    "CommandTimeoutError",
    "WaitTimeoutError",
    "StartError",
    "GroupStartError",
    "DestroyError",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
