"""Debian 12 (bookworm): systemd, apt, and what a server has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.images.recipes.debian import Debian

if TYPE_CHECKING:
    from pytest_vmfest.images.recipes.apt import Mirrors


def _sources(mirrors: Mirrors) -> list[str]:
    sources = [f"deb {mirrors.archive} bookworm main", f"deb {mirrors.archive} bookworm-updates main"]
    if mirrors.security:
        sources.append(f"deb {mirrors.security} bookworm-security main")
    return sources


RECIPE = Debian(
    name="debian-12",
    description="Debian 12 (bookworm) with systemd and apt",
    suite="bookworm",
    sources=_sources,
    packages=("linux-image-amd64",),
    os_version="12",
    os_type="Debian12_64",
)
build = RECIPE.build
check = RECIPE.check
