"""What recipes ask of the machine that they run on."""

from __future__ import annotations

import contextlib
import platform
from typing import TYPE_CHECKING

from pytest_vmfest.checks import Check
from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.rootless import remove_tree
from pytest_vmfest.images.recipes.tools import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# What every recipe runs, by the package that brings it.
COMMON_PROGRAMS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
}


def os_release() -> Mapping[str, str]:
    """The host's /etc/os-release; empty where there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def distribution() -> str:
    """``"debian"`` or ``"ubuntu"``, also for their derivatives; `ImageBuildError` on another host."""
    release = os_release()
    families = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    for family in ("ubuntu", "debian"):
        if family in families:
            return family
    raise ImageBuildError(
        f"recipes need a Debian or Ubuntu host, this is {release.get('PRETTY_NAME', platform.system())}",
        hint="add a ready-made image instead: vmfest image add",
    )


def check_host(recipe: str) -> Check:
    """Whether this host's packages can make a guest at all."""
    name = f"recipe {recipe}: host"
    if platform.machine() != "x86_64":
        return Check(name, False, f"guests are x86_64, this host is {platform.machine()}")
    try:
        return Check(name, True, f"{distribution()} {os_release().get('VERSION_ID', '')}".strip())
    except ImageBuildError as error:
        return Check(name, False, error.message, error.hint)


def check_programs(recipe: str, programs: Mapping[str, str]) -> list[Check]:
    """One finding per program of ``programs``, which maps it to the package that brings it."""
    checks = []
    for program, package in programs.items():
        path = find_program(program)
        remedy = "" if path else f"apt-get install {package}"
        detail = path or f"{program} is not installed"
        checks.append(Check(f"recipe {recipe}: {program}", path is not None, detail, remedy, (package,)))
    return checks


def require(checks: list[Check]) -> None:
    """Raise one `ImageBuildError` for all findings that are not well."""
    wrong = [check for check in checks if not check.ok]
    if wrong:
        packages = sorted({package for check in wrong for package in check.packages})
        hint = f"apt-get install {' '.join(packages)}" if packages else wrong[0].remedy
        raise ImageBuildError("; ".join(check.detail for check in wrong), hint=hint)


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder for what is needed while building, gone afterwards."""
    work = folder / "work"
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        remove_tree(work)
