"""Every option, declared once: command line, ini file and environment are derived from `Settings`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _option(
    default: Any,
    help: str,
    *,
    choices: Callable[[], tuple[str, ...]] | None = None,
    metavar: str = "",
    is_path: bool = False,
    is_pattern: bool = False,
    form: tuple[str, str] | None = None,
) -> Any:
    said = {"help": help, "choices": choices, "metavar": metavar, "form": form}
    return field(default=default, metadata={**said, "is_path": is_path, "is_pattern": is_pattern})


# Asked only when a value is to be checked: a run without machines does not load what it does not need.
def _hardware_models() -> tuple[str, ...]:
    from pytest_vmfest.specs import HARDWARE

    return tuple(HARDWARE)


def _network_modes() -> tuple[str, ...]:
    from pytest_vmfest.specs import NETWORK_MODES

    return NETWORK_MODES


@dataclass(frozen=True)
class Settings:
    """What the user configured; the docstring of each option is its ``help``.

    Each field ``some_name`` is the option ``--vm-some-name``, the ini key ``vm_some_name`` and the
    environment variable ``VMFEST_SOME_NAME``. A tuple may be given several times (in ini and environment:
    separated by white space; regular expressions: one a line).
    """

    driver: str = _option(
        "auto",
        "hypervisor driver: auto (VirtualBox where it works, else QEMU), virtualbox, qemu, fake (in memory)",
        choices=lambda: ("auto", "virtualbox", "qemu", "fake"),
        metavar="NAME",
    )
    image: tuple[str, ...] = _option(
        ("tiny",), "image for tests that name none; given several times, they run on each", metavar="NAME"
    )
    hardware: str | None = _option(
        None,
        "hardware model: micro, small, medium, large (default: what the image asks for, else micro)",
        choices=_hardware_models,
        metavar="NAME",
    )
    network: str | None = _option(
        None,
        "network mode: local, nat, internal, bridged (default: what the image asks for, else local)",
        choices=_network_modes,
        metavar="MODE",
    )
    local_interface: str = _option(
        "vboxnet0",
        "VirtualBox's host-only interface of machines in network mode local; created when missing",
        metavar="NAME",
        form=(r"vboxnet\d{1,3}", "vboxnet0, vboxnet1 or so"),
    )
    bridged_interface: str | None = _option(
        None,
        "interface of this host that VirtualBox's machines in network mode bridged share, verbatim as in "
        "'VBoxManage list bridgedifs' (default: the one that this host's default route goes through)",
        metavar="NAME",
    )
    url: str | None = _option(
        None,
        "VirtualBox's web service on another host, such as http://host:18083/, which sees VMFEST_HOME under "
        "the same path; the password is taken from the environment: VMFEST_PASSWORD",
        metavar="URL",
    )
    user: str = _option("", "who logs on to the web service", metavar="NAME")
    keep: str = _option(
        "never",
        "leave machines running after the run: never, failed (those of failed tests), always",
        choices=lambda: ("never", "failed", "always"),
        metavar="WHEN",
    )
    keep_timeout: float = _option(
        14400.0,
        "seconds that a machine which is left running may live; the next run, or vmfest gc, then removes it",
        metavar="SECONDS",
    )
    accel: str = _option(
        "auto",
        "QEMU's accelerator: auto (KVM if a probe guest proves that it works, else TCG), kvm, tcg",
        choices=lambda: ("auto", "kvm", "tcg"),
        metavar="NAME",
    )
    qemu: Path | None = _option(  # noqa: RUF009 - a field, like the others
        None,
        "folder that has the programs qemu-system-x86_64 and qemu-img (default: they are found in PATH)",
        metavar="DIR",
        is_path=True,
    )
    cpu: str | None = _option(
        None,
        "CPU model of QEMU's machines, as its -cpu takes it (default: Nehalem when emulated, host under KVM)",
        metavar="MODEL",
    )
    boot_timeout: float = _option(
        300.0, "seconds from a machine's creation until it must answer over SSH", metavar="SECONDS"
    )
    boot_retries: int = _option(
        1,
        "how often a machine that does not come up is replaced by a fresh one, which has the same time",
        metavar="N",
    )
    cold: bool = _option(
        False, "boot every machine, also where it could resume from a template in a fraction of the time"
    )
    spares: int = _option(
        0,
        "keep N machines ready, while tests run, of the kind that was asked for last; a test that finds one "
        "does not wait",
        metavar="N",
    )
    artifacts: Path | None = _option(  # noqa: RUF009 - a field, like the others
        None,
        "keep consoles, commands and screens of failing tests' machines in DIR/<run>/<test>/<node>; "
        "DIR/last leads to the newest run",
        metavar="DIR",
        is_path=True,
    )
    console_watch: str = _option(
        "fail",
        "when a guest's console tells of a kernel panic, an oops, the OOM killer or an emergency shell while "
        "a test uses it: fail (the test, at once), warn, off",
        choices=lambda: ("fail", "warn", "off"),
        metavar="HOW",
    )
    console_patterns: tuple[str, ...] = _option(
        (),
        "regular expression for lines of the console that tell of trouble, besides the built-in ones; may be "
        "given several times",
        metavar="REGEX",
        is_pattern=True,
    )
    gui: bool = _option(False, "show the machines' screens in windows")
    durations: bool = _option(False, "show what each test's machines spent their time on")
    timeline: Path | None = _option(  # noqa: RUF009 - a field, like the others
        None,
        "at the end draw what each worker, test and machine did when, as an HTML file",
        metavar="FILE",
        is_path=True,
    )


@dataclass(frozen=True)
class Option:
    """One option as the faces need it, derived from a field of `Settings`."""

    name: str
    default: Any
    help: str
    choices: Callable[[], tuple[str, ...]] | None
    metavar: str
    is_path: bool
    is_pattern: bool
    """Whether its values are regular expressions; they may hold blanks."""
    form: tuple[str, str] | None
    """A pattern that the whole value matches, and examples of such values."""

    @property
    def flag(self) -> str:
        """The command line's name: ``--vm-boot-timeout``."""
        return "--vm-" + self.name.replace("_", "-")

    @property
    def ini(self) -> str:
        """The ini file's name, also that of the parsed command line's attribute: ``vm_boot_timeout``."""
        return "vm_" + self.name

    @property
    def variable(self) -> str:
        """The environment's name: ``VMFEST_BOOT_TIMEOUT``."""
        return "VMFEST_" + self.name.upper()

    @property
    def repeatable(self) -> bool:
        """Whether it holds several values."""
        return isinstance(self.default, tuple)

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off."""
        return isinstance(self.default, bool)

    def parse(self, value: Any, where: str) -> Any:
        """The value in the option's type; `ConfigurationError` names ``where`` it was written."""
        if self.is_pattern:
            return self._parse_patterns(value, where)
        if self.repeatable:
            values = tuple(value.split() if isinstance(value, str) else value)
            if not values:
                raise self._refuse(value, where, "at least one value")
            return values
        if self.is_flag:
            return self._parse_flag(value, where)
        if isinstance(self.default, int):
            return self._parse_count(value, where)
        if isinstance(self.default, float):
            return self._parse_seconds(value, where)
        if self.is_path:
            return Path(value).expanduser().absolute()
        if self.choices and value not in self.choices():
            raise self._refuse(value, where, f"one of {', '.join(self.choices())}")
        if self.form and not re.fullmatch(self.form[0], value):
            raise self._refuse(value, where, self.form[1])
        return value

    def _parse_patterns(self, value: Any, where: str) -> tuple[str, ...]:
        lines = value.splitlines() if isinstance(value, str) else value
        patterns = tuple(line.strip() for line in lines if line.strip())
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise self._refuse(pattern, where, f"a regular expression ({error})") from None
        return patterns

    def _parse_flag(self, value: Any, where: str) -> bool:
        words = {"1": True, "true": True, "yes": True, "on": True}
        words |= {"0": False, "false": False, "no": False, "off": False, "": False}
        if str(value).lower() not in words:
            raise self._refuse(value, where, "true or false")
        return words[str(value).lower()]

    def _parse_count(self, value: Any, where: str) -> int:
        if not re.fullmatch(r"\d{1,3}", str(value), re.ASCII):
            raise self._refuse(value, where, "a whole number, 0 or more")
        return int(value)

    def _parse_seconds(self, value: Any, where: str) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < float("inf"):
            raise self._refuse(value, where, "a positive number of seconds")
        return seconds

    def _refuse(self, value: Any, where: str, expected: str) -> ConfigurationError:
        return ConfigurationError(f"{where}: {value!r} is not valid", hint=f"expected {expected}")


OPTIONS = tuple(Option(name=f.name, default=f.default, **f.metadata) for f in fields(Settings))


def load_settings(
    *,
    command_line: Callable[[str], Any] = lambda name: None,
    environ: Mapping[str, str] = os.environ,
    ini: Callable[[str], Any] = lambda name: None,
) -> Settings:
    """The settings by precedence: command line, environment, ini file, default.

    ``command_line`` and ``ini`` return what was written under an option's `Option.ini` name, or something
    empty. Raises `ConfigurationError` that names the place of a wrong value.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if (said := command_line(option.ini)) not in (None, []):
            values[option.name] = option.parse(said, option.flag)
        elif said := environ.get(option.variable):
            values[option.name] = option.parse(said, option.variable)
        elif (said := ini(option.ini)) not in (None, "", []):
            values[option.name] = option.parse(said, f"ini key {option.ini}")
    return Settings(**values)


def web_service_password(environ: Mapping[str, str] = os.environ) -> str:
    """The web service's password: ``VMFEST_PASSWORD``.

    There is no option for it: others can read command lines, and ini files are published.
    """
    return environ.get("VMFEST_PASSWORD", "")


def store_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of images, keys and machines: ``VMFEST_HOME``, else in the user's cache folder."""
    if home := environ.get("VMFEST_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("vmfest")
