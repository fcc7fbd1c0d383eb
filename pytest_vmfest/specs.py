"""What a machine is made from: image model, hardware model, networks, and the machine's own spec."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
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


_TEMPLATE_KEYS = ("os_family", "os_64_bit", "os_version", "packager")
TEMPLATE_KEYS: tuple[str, ...] = (
    *_TEMPLATE_KEYS,
    *(f"{key}_matches" for key in ("name", "os_family", "os_version", "packager", "description")),
)


@dataclass(frozen=True)
class VmRequest:
    """What a test asks for: the arguments of the ``vm`` marker and of the fixture factories.

    None means "not said here". `merged` puts one request over another, key by key.
    """

    image: Any = None
    hardware: str | HardwareModel | None = None
    network: NetworkMode | None = None
    nodes: int | Mapping[str, int] | None = None
    driver: str | None = None
    permanent: bool | None = None
    min_ram_mib: int | None = None
    min_cores: int | None = None
    init_script: str | Path | None = None

    @classmethod
    def parse(cls, arguments: Mapping[str, Any], *, where: str) -> VmRequest:
        """Check ``arguments`` and make a request of them.

        Raises `ConfigurationError` that names the argument, what is allowed, and ``where``.
        """
        allowed = [f.name for f in fields(cls)]
        for key in arguments:
            if key not in allowed:
                raise ConfigurationError(
                    f"{where}: unknown argument {key!r}", hint=f"allowed: {', '.join(allowed)}"
                )
        for key, value in arguments.items():
            if value is not None:
                _CHECKS[key](value, f"{where}: {key}={value!r}")
        return cls(**arguments)

    def merged(self, over: VmRequest) -> VmRequest:
        """A request that says what ``over`` says, and what this one says where ``over`` is silent."""
        said = {f.name: v for f in fields(over) if (v := getattr(over, f.name)) is not None}
        return replace(self, **said)

    @property
    def images(self) -> tuple[Any, ...]:
        """The images asked for: one for a single value, several for a list, none when not said."""
        if self.image is None:
            return ()
        return tuple(self.image) if isinstance(self.image, list | tuple) else (self.image,)


def node_names(nodes: int | Mapping[str, int]) -> tuple[tuple[str, str], ...]:
    """(role, name) of each node.

    >>> node_names({"db": 1, "web": 2})
    (('db', 'db-0'), ('web', 'web-0'), ('web', 'web-1'))
    >>> node_names(2)
    (('node', 'node-0'), ('node', 'node-1'))
    """
    roles = {"node": nodes} if isinstance(nodes, int) else nodes
    return tuple((role, f"{role}-{index}") for role, count in roles.items() for index in range(count))


def _fail(where: str, expected: str) -> None:
    raise ConfigurationError(f"{where} is not valid", hint=f"expected {expected}")


def _check_image(value: Any, where: str) -> None:
    if isinstance(value, list | tuple):
        if not value:
            _fail(where, "at least one image")
        for one in value:
            _check_one_image(one, where)
    else:
        _check_one_image(value, where)


def _check_one_image(value: Any, where: str) -> None:
    if isinstance(value, str) and value:
        return
    if hasattr(value, "__fspath__"):
        return
    if isinstance(value, dict) and value:
        check_template(value, where)
        return
    _fail(where, "a name, a path, a URL, a template such as {'os_family': 'debian'}, or a list of these")


def check_template(template: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigurationError` if ``template`` has keys, types or patterns that no image can be held to."""
    for key, value in template.items():
        if key not in TEMPLATE_KEYS:
            raise ConfigurationError(
                f"{where}: unknown template key {key!r}", hint=f"allowed: {', '.join(TEMPLATE_KEYS)}"
            )
        kind = bool if key == "os_64_bit" else str
        if not isinstance(value, kind):
            _fail(f"{where}: {key}", "True or False" if kind is bool else "a string")
        if key.endswith("_matches"):
            try:
                re.compile(value)
            except re.error as error:
                _fail(f"{where}: {key}", f"a regular expression ({error})")


def _check_hardware(value: Any, where: str) -> None:
    if not isinstance(value, HardwareModel):
        if not isinstance(value, str):
            _fail(where, f"one of {', '.join(HARDWARE)} or a HardwareModel")
        try:
            hardware_model(value)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error.message}", hint=error.hint) from None


def _check_choice(value: Any, where: str, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        _fail(where, f"one of {', '.join(choices)}")


def _check_nodes(value: Any, where: str) -> None:
    expected = "a number from 1 to 200, or numbers by role such as {'db': 1, 'web': 2}"
    counts = value.values() if isinstance(value, dict) else [value]
    if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in counts):
        _fail(where, expected)
    if sum(counts) > 200:
        _fail(where, expected)
    if isinstance(value, dict):
        for role in value:
            check_label(role, f"{where}: role")


def _check_driver(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value:
        _fail(where, "the name of a driver")


def _check_positive(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _fail(where, "a positive whole number")


def _check_bool(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        _fail(where, "True or False")


def _check_script(value: Any, where: str) -> None:
    if not (isinstance(value, str) and value.strip()) and not hasattr(value, "__fspath__"):
        _fail(where, "a shell script's text, or the path of one")


_CHECKS: dict[str, Any] = {
    "image": _check_image,
    "hardware": _check_hardware,
    "network": lambda value, where: _check_choice(value, where, NETWORK_MODES),
    "nodes": _check_nodes,
    "driver": _check_driver,
    "permanent": _check_bool,
    "min_ram_mib": _check_positive,
    "min_cores": _check_positive,
    "init_script": _check_script,
}
