"""What a machine is made from: image model, hardware model, networks, and the machine's own spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

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
    """A named size of machine.

    >>> HARDWARE["small"].at_least(min_ram_mib=2048)
    HardwareModel(name='small', memory_mib=2048, cpus=1)
    """

    name: str
    memory_mib: int
    cpus: int

    def __post_init__(self) -> None:
        """Refuse sizes that no machine can have."""
        if self.memory_mib < 64 or self.cpus < 1:
            raise ConfigurationError(
                f"hardware {self.name!r}: {self.memory_mib} MiB and {self.cpus} CPUs is too small",
                hint="give at least 64 MiB and 1 CPU",
            )

    def at_least(self, min_ram_mib: int | None = None, min_cores: int | None = None) -> HardwareModel:
        """The same, raised (never lowered) to the given memory in MiB and number of CPUs."""
        return replace(
            self,
            memory_mib=max(self.memory_mib, min_ram_mib or 0),
            cpus=max(self.cpus, min_cores or 0),
        )


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

    def __post_init__(self) -> None:
        """Refuse a name that cannot be a host name or folder."""
        check_label(self.name, "machine name")
