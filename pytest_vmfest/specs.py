"""What a machine is made from: image model, hardware model, networks, and the machine's own spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_vmfest.devices import (
    BOOT_DEVICES,
    NIC_TYPES,
    BootDevice,
    NatRule,
    NicType,
    SharedFolder,
    StorageController,
    as_tuple,
    check_choice,
    check_differ,
    check_mac,
    check_whole,
    from_json,
    refuse,
    to_json,
)
from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DiskFormat = Literal["qcow2", "raw", "vdi", "vmdk"]
Firmware = Literal["bios", "efi"]
NetworkMode = Literal["local", "bridged", "nat", "internal"]

DISK_FORMATS: tuple[str, ...] = get_args(DiskFormat)
NETWORK_MODES: tuple[str, ...] = get_args(NetworkMode)

# A host name's label (RFC 1123), which node, group and machine names have to be.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}\Z")


def check_label(name: str, what: str) -> str:
    """Return ``name`` if a host may be called so (RFC 1123), else raise `ConfigurationError`."""
    if not _LABEL.match(name):
        raise ConfigurationError(
            f"{what} {name!r} is not a host name",
            hint="use 1 to 63 lower-case letters, digits and inner hyphens",
        )
    return name


def check_image_name(name: str) -> str:
    """Return ``name`` if an image model may be called so, else raise `ConfigurationError`."""
    if not _IMAGE_NAME.match(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of an image",
            hint="use letters, digits and . _ + -, beginning with a letter or digit, 128 at most",
        )
    return name


@dataclass(frozen=True)
class HardwareModel:
    """A named size of machine, and what else it has.

    >>> HARDWARE["small"].at_least(min_ram_mib=2048).memory_mib
    2048

    Besides ``memory_mib`` and ``cpus`` all may be left open. What is said here wins over what the image
    says (``firmware``, ``os_type``), and that over the driver's own choice. A driver that cannot do what is
    said raises `NotSupportedError` that names it; nothing is left out silently.

    * ``vram_mib``: memory of the screen.
    * ``controllers``: storage besides the image's own disk, which has a controller named ``disk``.
    * ``nic_type``, ``mac``: the first network card's make, and its address (``08:00:27:01:02:03``).
    * ``boot_order``: what the firmware tries, such as ``("dvd", "disk")``; the guest is then started by it,
      not by a shortcut of the image's.
    * ``firmware``: bios or efi. ``os_type``: VirtualBox's name of the guest system.
    * ``shared_folders``: folders of this host. ``nat_rules``: ways in, for network modes local and nat.
    * ``description``: for people who look at the machine in the hypervisor.
    """

    name: str
    memory_mib: int
    cpus: int
    vram_mib: int | None = None
    controllers: tuple[StorageController, ...] = ()
    nic_type: NicType | None = None
    mac: str | None = None
    boot_order: tuple[BootDevice, ...] = ()
    firmware: Firmware | None = None
    shared_folders: tuple[SharedFolder, ...] = ()
    nat_rules: tuple[NatRule, ...] = ()
    os_type: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what no machine can have."""
        where = f"hardware {self.name!r}:"
        for size in (self.memory_mib, self.cpus):
            if isinstance(size, bool) or not isinstance(size, int):
                raise refuse(f"{where} size {size!r}", "a whole number")
        if self.memory_mib < 64 or self.cpus < 1:
            raise ConfigurationError(
                f"{where} {self.memory_mib} MiB and {self.cpus} CPUs is too small",
                hint="give at least 64 MiB and 1 CPU",
            )
        if self.vram_mib is not None:
            check_whole(self.vram_mib, f"{where} vram_mib", 1, 256)
        if self.nic_type is not None:
            check_choice(self.nic_type, f"{where} nic_type", NIC_TYPES)
        if self.mac is not None:
            check_mac(self.mac, f"{where} mac")
        if self.firmware is not None:
            check_choice(self.firmware, f"{where} firmware", get_args(Firmware))
        for key, kind in _PARTS.items():
            parts = as_tuple(getattr(self, key), f"{where} {key}")
            object.__setattr__(self, key, parts)
            for part in parts:
                if not isinstance(part, kind):
                    raise refuse(f"{where} {key} with {part!r}", f"{kind.__name__}s")
            check_differ((part.name for part in parts), f"{where} name in {key}")
        object.__setattr__(self, "boot_order", as_tuple(self.boot_order, f"{where} boot_order"))
        for device in self.boot_order:
            check_choice(device, f"{where} boot_order with", BOOT_DEVICES)
        check_differ(self.boot_order, f"{where} boot_order with")

    def as_json(self) -> dict[str, Any]:
        """Plain data that JSON can hold; `from_json` undoes it."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return said | {key: [to_json(part) for part in said[key]] for key in _PARTS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HardwareModel:
        """The model that `as_json` made ``data`` of."""
        parts = {key: tuple(from_json(kind, part) for part in data[key]) for key, kind in _PARTS.items()}
        return cls(**{**data, **parts})

    def at_least(self, min_ram_mib: int | None = None, min_cores: int | None = None) -> HardwareModel:
        """The same, raised (never lowered) to the given memory in MiB and number of CPUs."""
        return replace(
            self,
            memory_mib=max(self.memory_mib, min_ram_mib or 0),
            cpus=max(self.cpus, min_cores or 0),
        )


_PARTS: Mapping[str, type[StorageController | SharedFolder | NatRule]] = {
    "controllers": StorageController,
    "shared_folders": SharedFolder,
    "nat_rules": NatRule,
}

HARDWARE: Mapping[str, HardwareModel] = {
    model.name: model
    for model in (
        HardwareModel("micro", memory_mib=512, cpus=1),
        HardwareModel("small", memory_mib=1024, cpus=1),
        HardwareModel("medium", memory_mib=2048, cpus=2),
        HardwareModel("large", memory_mib=4096, cpus=4),
    )
}


def hardware_model(name: str | HardwareModel, known: Mapping[str, HardwareModel] = HARDWARE) -> HardwareModel:
    """The hardware model called ``name``; `ConfigurationError` lists the known ones otherwise."""
    if isinstance(name, HardwareModel):
        return name
    try:
        return known[name]
    except KeyError:
        raise ConfigurationError(
            f"unknown hardware model {name!r}", hint=f"known: {', '.join(known)}"
        ) from None


@dataclass(frozen=True)
class DirectBoot:
    """A kernel that a hypervisor able to do so starts itself, past firmware and boot loader."""

    kernel: Path
    initrd: Path | None
    command_line: str


@dataclass(frozen=True)
class Login:
    """How to log into a guest. ``host_key`` is ``"ssh-ed25519 AAAA…"``; None trusts the first one seen."""

    username: str = "root"
    password: str | None = field(default=None, repr=False)
    private_key: Path | None = None
    host_key: str | None = None
    sudo_password: str | None = field(default=None, repr=False)
    no_sudo: bool = False


@dataclass(frozen=True)
class ImageModel:
    """A named, immutable disk image with what has to be known to run it.

    Attributes: ``disk`` the image file, of ``format``; ``os_type`` VirtualBox's name of the guest system;
    ``packager`` the guest's package manager (``apt``); ``hardware`` and ``network`` what the image asks for
    when nothing else is said; ``direct_boot`` a shortcut past the boot loader that the disk has as well.
    """

    name: str
    disk: Path
    format: DiskFormat
    login: Login = Login()
    os_family: str | None = None
    os_version: str | None = None
    os_64_bit: bool = True
    os_type: str | None = None
    packager: str | None = None
    description: str = ""
    hardware: str | None = None
    network: NetworkMode | None = None
    firmware: Firmware = "bios"
    sha256: str | None = None
    direct_boot: DirectBoot | None = None


@dataclass(frozen=True)
class Identity:
    """The keys of an image store: its login key pair, and the host key that its own images are given.

    ``authorized_key`` and ``host_public_key`` are lines in OpenSSH's format, ``host_private_key`` is a PEM.
    """

    private_key: Path
    authorized_key: str
    host_private_key: str = field(repr=False)
    host_public_key: str


@dataclass(frozen=True)
class Endpoint:
    """An address on this host, mostly one that leads into a guest."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class PrivateNic:
    """A machine's place on a private network: the network's name, its MAC and its address there."""

    network: str
    mac: str
    address: str
    prefix_length: int = 24


@dataclass(frozen=True)
class MachineSpec:
    """Everything that a driver needs to create one machine.

    ``name`` is unique among all machines of a driver; ``tags`` are kept with the machine and survive a
    restart (run, worker, group, image; no secrets).
    """

    name: str
    image: ImageModel
    hardware: HardwareModel
    network: NetworkMode = "local"
    nics: tuple[PrivateNic, ...] = ()
    permanent: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    freeze_to: Path | None = None
    """A new folder for `Driver.freeze` to keep the machine in."""
    thaw_from: Path | None = None
    """The folder of a frozen machine, alike but for name and NICs, that this one goes on from."""

    def __post_init__(self) -> None:
        """Refuse a name that cannot be a host name or folder, and rules for a NAT that there is not."""
        check_label(self.name, "machine name")
        if self.hardware.nat_rules and self.network not in ("local", "nat"):
            raise ConfigurationError(
                f"machine {self.name!r}: hardware {self.hardware.name!r} has nat_rules, "
                f"and there is no NAT in network mode {self.network}",
                hint="use network mode local or nat",
            )

    @property
    def firmware(self) -> Firmware:
        """What the hardware says, else what the image asks for."""
        return self.hardware.firmware or self.image.firmware

    @property
    def os_type(self) -> str | None:
        """VirtualBox's name of the guest system: what the hardware says, else what the image says."""
        return self.hardware.os_type or self.image.os_type
