"""Working with files of many owners without being root: user namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from pytest_vmfest.checks import Check
from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.tools import find_program, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# Ending the first process of the namespace ends all of them, and takes what they mounted along.
_ISOLATED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_MAPPED = ("--user", "--map-root-user", "--map-auto")


def run_as_root(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[str], None] | None = None,
) -> str:
    """`run` with root's rights over the files of this user, who is root in there; others are subordinate ids.

    A file that this user owns belongs to root in there, and the other way round.
    """
    return run(as_root(command), timeout_s=timeout_s, environment=environment, watch=watch)


def as_root(command: Sequence[str | Path]) -> list[str | Path]:
    """The words of a command that runs ``command`` as `run_as_root` does."""
    namespace = _ISOLATED if os.getuid() == 0 else (*_ISOLATED, *_MAPPED)
    return [*namespace, "--", *command]


def remove_tree(folder: Path) -> None:
    """Remove a folder that `run_as_root` may have filled, as far as possible."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        with contextlib.suppress(ImageBuildError):
            run_as_root(["rm", "-rf", folder], timeout_s=120)


def check_namespaces(recipe: str) -> Check:
    """Whether `run_as_root` works for this user."""
    name = f"recipe {recipe}: user namespaces"
    if os.getuid() == 0:
        return Check(name, True, "not needed by root")
    if find_program("newuidmap") is None:
        detail = "newuidmap is not installed"
        return Check(name, False, detail, "apt-get install uidmap", ("uidmap",))
    try:
        run_as_root(["true"], timeout_s=20)
    except ImageBuildError as error:
        remedy = "give this user subordinate ids (usermod --add-subuids, --add-subgids), or build as root"
        return Check(name, False, f"user namespaces do not work for this user: {error.message}", remedy)
    return Check(name, True, "this user has subordinate ids")
