"""The ``vm`` marker: read, checked and merged, closest first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_vmfest.config import Settings
    from pytest_vmfest.request import VmRequest

MARKER_HELP = (
    "vm(image=, hardware=, network=, nodes=, driver=, permanent=, min_ram_mib=, min_cores=, init_script=): "
    "the machine that vm_instance, vm_group and vm_image give to the test. image is a name, path, URL, or "
    "template such as {'os_family': 'debian'}; a list of images runs the test on each. nodes is a number, or "
    "numbers by role such as {'db': 1, 'web': 2}. The closest marker wins, argument by argument."
)


def marked_request(node: pytest.Item | pytest.Collector, settings: Settings) -> VmRequest:
    """What the markers around ``node`` ask for, put over the settings.

    Raises `ConfigurationError` that names the test, the argument and what is allowed.
    """
    from pytest_vmfest.request import VmRequest

    request = VmRequest(hardware=settings.hardware, network=settings.network)  # type: ignore[arg-type]
    for marker in reversed(list(node.iter_markers("vm"))):
        where = f"@pytest.mark.vm on {node.nodeid or 'the session'}"
        if marker.args:
            raise ConfigurationError(
                f"{where}: {marker.args[0]!r} is given by position",
                hint="name the arguments, such as @pytest.mark.vm(image='tiny')",
            )
        request = request.merged(VmRequest.parse(marker.kwargs, where=where))
    return request


def image_id(selector: Any) -> str:
    """A readable id for a test that runs on one of several images."""
    if isinstance(selector, Mapping):
        return ",".join(f"{key}={value}" for key, value in selector.items())
    if isinstance(selector, os.PathLike):
        return Path(selector).name
    return str(selector)


def parametrize_images(metafunc: pytest.Metafunc, fixture: str, images: Sequence[Any]) -> None:
    """Run the test once for each image if there are several."""
    if len(images) > 1:
        metafunc.parametrize(fixture, images, indirect=True, ids=[image_id(one) for one in images])
