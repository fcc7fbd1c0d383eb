"""``vmfest doctor``: what works on this host, what is missing, and installing that."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from pytest_vmfest.checks import Check
from pytest_vmfest.cli import show
from pytest_vmfest.cli.install import install
from pytest_vmfest.cli.setup import examples, json_option, with_setup
from pytest_vmfest.cli.units import size
from pytest_vmfest.drivers import DRIVERS, driver_class
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.errors import VmfestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_vmfest.cli.setup import Setup

# A recipe's disk and its packages while it is built, and some machines' layers.
_ENOUGH_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """What was found of one part: a driver, a recipe, or the store."""

    kind: str
    name: str
    works: bool
    checks: list[Check]


@click.command(
    epilog=examples("vmfest doctor", "vmfest doctor --install --yes      on a fresh machine, unattended")
)
@click.option("--install", "wants_install", is_flag=True, help="Install the missing packages, after asking.")
@click.option("--yes", is_flag=True, help="With --install: don't ask.")
@json_option
@with_setup("home", "accel", "qemu")
@click.pass_context
def doctor(ctx: click.Context, setup: Setup, wants_install: bool, yes: bool, json_: bool) -> None:
    """Show what works on this host, and what is missing.

    Looks at the hypervisors, at what recipes need to build images, and at the store. Exits with 0 when at
    least one hypervisor works, every recipe has its tools, and the store can be used; else with 1.

    With --install, missing packages are installed by apt-get, as root or through sudo.
    """
    findings = examine(setup)
    if wants_install:
        packages = missing_packages(findings)
        if packages:
            install(packages, ask=not yes)
            findings = examine(setup)
        else:
            show.note("No package is missing: nothing to install.")
    well = is_well(findings)
    if json_:
        show.as_json({"ok": well, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
        missing = missing_packages(findings)
        if missing and not wants_install:
            click.echo(f"Missing packages: {' '.join(missing)}\nTo install them: vmfest doctor --install")
        click.echo("Machines can be run here." if well else "Machines cannot be run here as things are.")
    ctx.exit(0 if well else 1)


def examine(setup: Setup) -> list[Finding]:
    """Look at every driver of a real hypervisor, every recipe, and the store."""
    from pytest_vmfest.images.recipes import RECIPES

    drivers = [_examine_driver(name, setup) for name in DRIVERS if name != "fake"]
    recipes = [_examined("recipe", recipe.name, recipe.check) for recipe in RECIPES.values()]
    return [
        *drivers,
        *recipes,
        _examined("store", str(setup.home), lambda: check_store(setup.home)),
        _examined("command", "vmfest instance ssh", check_ssh),
    ]


def is_well(findings: list[Finding]) -> bool:
    """Whether machines can be had here: by any driver, from any recipe, in the store."""
    return all(
        any(finding.works for finding in findings if finding.kind == kind)
        for kind in ("driver", "recipe", "store")
    )


def missing_packages(findings: list[Finding]) -> list[str]:
    """The packages that mend what is not well."""
    wrong = [check for finding in findings for check in finding.checks if not check.ok]
    return sorted({package for check in wrong for package in check.packages})


def check_store(home: Path) -> list[Check]:
    """Whether the store's folder, or the one that it will be made in, is writable and has room."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        detail = f"nothing can be written to {folder}: {error.strerror}"
        return [Check("writable", False, detail, "choose another folder: VMFEST_HOME")]
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    return [
        Check("writable", True, "" if folder == home else "will be made when it is needed"),
        Check(
            "free space",
            free >= _ENOUGH_BYTES,
            f"{size(free)} free",
            "" if free >= _ENOUGH_BYTES else f"make room for {size(_ENOUGH_BYTES)}, or choose VMFEST_HOME",
        ),
    ]


def check_ssh() -> list[Check]:
    """Whether people can enter machines from a terminal."""
    found = shutil.which("ssh")
    if found:
        return [Check("ssh", True, found)]
    return [
        Check("ssh", False, "ssh is not installed", "apt-get install openssh-client", ("openssh-client",))
    ]


def _examine_driver(name: str, setup: Setup) -> Finding:
    """A driver that opens may still lack what machines need, and do without something that it checks."""
    settings = DriverSettings.of(setup.settings, setup.home)
    driver = driver_class(name)(settings)
    reason, hint = driver.why_not(settings), ""
    try:
        driver.open()
    except VmfestError as error:
        reason, hint = error.message, error.hint
    try:
        checks = _examined("driver", name, driver.check).checks
    finally:
        driver.close()
    # It never fails to work without saying why.
    if reason and all(check.ok for check in checks):
        checks.append(Check(name, False, reason, hint))
    return Finding("driver", name, not reason, checks)


def _examined(kind: str, name: str, look: Callable[[], list[Check]]) -> Finding:
    try:
        checks = look()
    except VmfestError as error:
        checks = [Check(name, False, error.message, error.hint)]
    return Finding(kind, name, all(check.ok for check in checks), checks)


def _print(findings: list[Finding]) -> None:
    for finding in findings:
        part = f"{finding.kind} {finding.name}"
        verdict = "works" if finding.works else "does not work"
        click.echo(f"{part}: {verdict}")
        names = [check.name.removeprefix(f"{part}: ") for check in finding.checks]
        width = max(map(len, names), default=0)
        for name, check in zip(names, finding.checks, strict=True):
            click.echo(f"  {show.mark(check.ok)} {name:{width}}  {check.detail}".rstrip())
            if not check.ok and check.remedy:
                click.echo(f"    {'':{width}}  {check.remedy}")
    click.echo()
