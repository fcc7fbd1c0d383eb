"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_vmfest.checks import Check
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity, ImageModel


@dataclass(frozen=True)
class Recipe:
    """A way to make an image model on this machine.

    ``build(folder, identity, progress)`` writes the disk, the kernel and the initial RAM disk into the empty
    ``folder`` and returns the model that names them. It raises `ImageBuildError`, and leaves neither
    processes nor files outside of ``folder``. ``check()`` says which programs of the host it needs, and which
    of them are missing.
    """

    name: str
    description: str
    build: Callable[[Path, Identity, Progress], ImageModel]
    check: Callable[[], list[Check]]
