"""Options that many commands share, and what they come to."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pytest_vmfest.config import Settings, load_settings, store_home
from pytest_vmfest.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.progress import Progress
    from pytest_vmfest.server import Server

R = TypeVar("R")


@dataclass(frozen=True)
class Setup:
    """Where a command works: the store's folder, and the settings from command line and environment."""

    home: Path
    settings: Settings

    @classmethod
    def load(cls, home: Path | None = None, **said: Any) -> Setup:
        """What the command line said, else the environment; `ConfigurationError` for a wrong variable."""
        given = {name: value for name, value in said.items() if value is not None}
        return cls((home or store_home()).absolute(), replace(load_settings(), **given))

    def server(self, progress: Progress = silent) -> Server:
        """The server, not connected yet."""
        from pytest_vmfest.server import Server

        return Server.configured(self.settings, home=self.home, progress=progress)


_OPTIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "home": click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help="The store's folder.  [environment: VMFEST_HOME]",
    ),
    "driver": click.option(
        "--driver",
        metavar="NAME",
        help="Hypervisor driver: auto, virtualbox, qemu.  [environment: VMFEST_DRIVER]",
    ),
    "accel": click.option(
        "--accel",
        type=click.Choice(["auto", "kvm", "tcg"]),
        help="QEMU's accelerator; auto: KVM if it is proved to work, else TCG.  [environment: VMFEST_ACCEL]",
    ),
    "qemu": click.option(
        "--qemu",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of QEMU's programs, else they are found in PATH.  [environment: VMFEST_QEMU]",
    ),
    "cpu": click.option(
        "--cpu",
        metavar="MODEL",
        help="CPU model of QEMU's machines, as its -cpu takes it.  [environment: VMFEST_CPU]",
    ),
}


def with_setup(*names: str) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command the options called ``names`` and, in their stead, a `Setup` as its first argument."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def command(**arguments: Any) -> R:
            said = {name: arguments.pop(name) for name in names}
            return function(Setup.load(**said), **arguments)

        decorated: Callable[..., R] = command
        for name in reversed(names):
            decorated = _OPTIONS[name](decorated)
        return decorated

    return decorate


json_option = click.option("--json", "json_", is_flag=True, help="Print JSON, for programs.")


def examples(*commands: str) -> str:
    """The end of a command's help that shows it in use, for click's ``epilog``."""
    # \b keeps click from filling the lines.
    return "\n".join(["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  {c}" for c in commands)])
