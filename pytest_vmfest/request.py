"""What a test asks for: the arguments of the marker and the factories, checked and merged."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.specs import HARDWARE, NETWORK_MODES, HardwareModel, check_label, hardware_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pytest_vmfest.specs import NetworkMode

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
