"""Images that are made on this machine, from the packages of its own distribution.

Importing this is cheap: a recipe's code is loaded when it is built or checked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from pytest_vmfest.images.recipes.base import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_vmfest.checks import Check
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity, ImageModel

__all__ = ["RECIPES", "Recipe"]


def _recipe(name: str, module: str, description: str) -> Recipe:
    path = f"{__name__}.{module}"

    def build(folder: Path, identity: Identity, progress: Progress) -> ImageModel:
        return cast("ImageModel", importlib.import_module(path).build(folder.resolve(), identity, progress))

    def check() -> list[Check]:
        return cast("list[Check]", importlib.import_module(path).check())

    return Recipe(name, description, build, check)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe(
            "tiny", "tiny", "the smallest Linux that has OpenSSH: this host's kernel package and busybox"
        ),
        _recipe("debian-12", "debian12", "Debian 12 (bookworm) with systemd and apt"),
        _recipe(
            "virtualbox-host",
            "virtualbox_host",
            "Debian unstable with VirtualBox, to run VirtualBox's machines in",
        ),
    )
}
