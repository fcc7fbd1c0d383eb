"""What a machine can have besides memory, CPUs and its image's disk: controllers, media, folders, rules.

>>> from pytest_vmfest import Dvd, HardwareModel, NatRule, NewDisk, SharedFolder, StorageController
>>> HardwareModel(
...     "lab",
...     memory_mib=1024,
...     cpus=2,
...     controllers=(StorageController("scsi", devices=(NewDisk(size_mib=64), Dvd())),),
...     shared_folders=(SharedFolder("src", "/srv/src", read_only=True),),
...     nat_rules=(NatRule("web", guest_port=80),),
... ).controllers[0].name
'scsi'
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

Bus = Literal["ide", "sata", "scsi", "sas"]
NicType = Literal["e1000", "e1000-82545em", "pcnet", "virtio"]
BootDevice = Literal["disk", "dvd", "floppy", "network"]
Protocol = Literal["tcp", "udp"]

NIC_TYPES: tuple[str, ...] = get_args(NicType)
BOOT_DEVICES: tuple[str, ...] = get_args(BootDevice)

# As many as VirtualBox's controllers take.
_MOST_DEVICES: Mapping[str, int] = {"ide": 4, "sata": 30, "scsi": 16, "sas": 255}
_LARGEST_DISK_MIB = 2 * 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


def refuse(what: str, expected: str) -> ConfigurationError:
    """The error for a value that no machine can have."""
    return ConfigurationError(f"{what} is not valid", hint=f"expected {expected}")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if a controller, folder or rule may be called so, else raise `ConfigurationError`."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise refuse(f"{what} {name!r}", "letters, digits and . _ -, beginning with a letter or digit")
    return name


def check_mac(mac: str, what: str) -> str:
    """Return ``mac`` if one network card may have it, else raise `ConfigurationError`."""
    if not isinstance(mac, str) or not _MAC.match(mac) or int(mac[1], 16) & 1:
        raise refuse(f"{what} {mac!r}", "lower-case hex pairs, the first one even: 08:00:27:01:02:03")
    return mac


def check_choice(value: object, what: str, choices: Iterable[str]) -> None:
    """Raise `ConfigurationError` if ``value`` is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise refuse(f"{what} {value!r}", f"one of {', '.join(choices)}")


def check_whole(value: object, what: str, low: int, high: int) -> None:
    """Raise `ConfigurationError` if ``value`` is no whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise refuse(f"{what} {value!r}", f"a whole number from {low} to {high}")


def check_differ(names: Iterable[str], what: str) -> None:
    """Raise `ConfigurationError` if two of the names are the same."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise refuse(f"{what} {name!r}, given twice,", "names that differ")
        seen.add(name)


@dataclass(frozen=True, init=False)
class ExistingDisk:
    """A disk image of the user's own, which the machine writes to and which stays when it is destroyed."""

    path: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the file's path; a relative one is meant as seen from the current folder."""
        object.__setattr__(self, "path", _absolute(path, "disk"))


@dataclass(frozen=True)
class NewDisk:
    """An empty disk, made with the machine and destroyed with it."""

    size_mib: int

    def __post_init__(self) -> None:
        """Refuse sizes that no disk can have."""
        check_whole(self.size_mib, "size_mib of a new disk", 1, _LARGEST_DISK_MIB)


@dataclass(frozen=True, init=False)
class Dvd:
    """A DVD drive with an ISO image in it, or an empty one."""

    path: Path | None

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Take the image's path; a relative one is meant as seen from the current folder."""
        object.__setattr__(self, "path", None if path is None else _absolute(path, "dvd"))


Device = ExistingDisk | NewDisk | Dvd
_KINDS: Mapping[str, type[Device]] = {"existing_disk": ExistingDisk, "new_disk": NewDisk, "dvd": Dvd}


@dataclass(frozen=True)
class StorageController:
    """A controller besides the one that has the image's own disk, with devices on its ports in order.

    Without a ``name`` it is called like its bus.
    """

    bus: Bus
    name: str = ""
    devices: tuple[Device, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no controller can be."""
        check_choice(self.bus, "bus", _MOST_DEVICES)
        object.__setattr__(self, "name", check_name(self.name or self.bus, "controller name"))
        object.__setattr__(self, "devices", as_tuple(self.devices, f"controller {self.name!r}: devices"))
        if self.name == "disk":
            raise refuse("controller name 'disk'", "another one: the image's own disk is on that")
        for device in self.devices:
            if not isinstance(device, Device):
                raise refuse(f"controller {self.name!r}: device {device!r}", "ExistingDisk, NewDisk or Dvd")
        if len(self.devices) > _MOST_DEVICES[self.bus]:
            raise refuse(
                f"controller {self.name!r}: {len(self.devices)} devices on {self.bus}",
                f"{_MOST_DEVICES[self.bus]} at most",
            )


@dataclass(frozen=True, init=False)
class SharedFolder:
    """A folder of this host that the guest can mount by ``name``."""

    name: str
    path: Path
    read_only: bool

    def __init__(self, name: str, path: str | os.PathLike[str], read_only: bool = False) -> None:
        """Take the path as seen from the current folder; `ConfigurationError` for a name that cannot be."""
        object.__setattr__(self, "name", check_name(name, "shared folder"))
        object.__setattr__(self, "path", _absolute(path, f"shared folder {name!r}: path"))
        object.__setattr__(self, "read_only", bool(read_only))


@dataclass(frozen=True)
class NatRule:
    """A way from a port of this host into the guest, through the NAT of network mode local or nat.

    ``host`` is the address of this host that is listened on; ``host_port`` None or 0 stands for a free one,
    which in network mode nat ``forward(guest_port)`` tells; ``guest`` is the guest's address, if it is not
    the one that it gets from the NAT.
    """

    name: str
    guest_port: int
    protocol: Protocol = "tcp"
    host: str = "127.0.0.1"
    host_port: int | None = None
    guest: str = ""

    def __post_init__(self) -> None:
        """Refuse what no rule can be."""
        check_name(self.name, "NAT rule")
        if self.name == "ssh" or self.name.startswith("vmfest-"):
            raise refuse(f"NAT rule {self.name!r}", "another name: it is taken by the machine's own rules")
        check_choice(self.protocol, f"NAT rule {self.name!r}: protocol", get_args(Protocol))
        check_whole(self.guest_port, f"NAT rule {self.name!r}: guest_port", 1, 65535)
        if self.host_port is not None:
            check_whole(self.host_port, f"NAT rule {self.name!r}: host_port", 0, 65535)
        _check_ipv4(self.host, f"NAT rule {self.name!r}: host")
        if self.guest:
            _check_ipv4(self.guest, f"NAT rule {self.name!r}: guest")


def as_tuple(values: Any, what: str) -> tuple[Any, ...]:
    """A list or tuple as a tuple, so that what is made of it cannot change any more."""
    if not isinstance(values, list | tuple):
        raise refuse(f"{what} {values!r}", "a list or tuple")
    return tuple(values)


def to_json(thing: Any) -> Any:
    """A part of a hardware model as plain data, for a machine's record; `from_json` undoes it."""
    if isinstance(thing, StorageController):
        kinds = {kind: name for name, kind in _KINDS.items()}
        devices = [{"kind": kinds[type(device)], **to_json(device)} for device in thing.devices]
        return {"bus": thing.bus, "name": thing.name, "devices": devices}
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(thing).items()}


def from_json(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """The part of a hardware model that `to_json` made ``data`` of."""
    values = dict(data)
    if kind is StorageController:
        values["devices"] = tuple(
            _KINDS[device["kind"]](**{key: value for key, value in device.items() if key != "kind"})
            for device in data["devices"]
        )
    return kind(**values)


def _absolute(path: Any, what: str) -> Path:
    if not isinstance(path, str | Path) and not hasattr(path, "__fspath__"):
        raise refuse(f"{what} {path!r}", "a path")
    if not str(path):
        raise refuse(f"{what} {path!r}", "a path")
    return Path(path).expanduser().absolute()


def _check_ipv4(address: object, what: str) -> None:
    from ipaddress import IPv4Address

    try:
        IPv4Address(address if isinstance(address, str) else "")
    except ValueError:
        raise refuse(f"{what} {address!r}", "an IPv4 address such as 127.0.0.1") from None
