"""The fixtures of the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_vmfest.markers import marked_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_vmfest.config import Settings
    from pytest_vmfest.group import NodeGroup
    from pytest_vmfest.node import Node
    from pytest_vmfest.processes import Process
    from pytest_vmfest.run import Run
    from pytest_vmfest.server import Server
    from pytest_vmfest.specs import ImageModel

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
RUN: pytest.StashKey[Run] = pytest.StashKey()
CONTROLLER: pytest.StashKey[Process] = pytest.StashKey()
ARTIFACTS: pytest.StashKey[Path] = pytest.StashKey()
"""The run's folder for them, if there is to be one."""


def run_of(config: pytest.Config) -> Run:
    """The run that all fixtures share; a session that uses no machine never makes one."""
    if RUN not in config.stash:
        from pytest_vmfest.artifacts import Artifacts
        from pytest_vmfest.progress import LineProgress
        from pytest_vmfest.report import line_writer
        from pytest_vmfest.run import Run

        progress = LineProgress(line_writer(config))
        folder = config.stash.get(ARTIFACTS, None)
        artifacts = Artifacts(folder) if folder else None
        config.stash[RUN] = Run.of(
            config, config.stash[SETTINGS], progress, artifacts, config.stash.get(CONTROLLER, None)
        )
    return config.stash[RUN]


@pytest.fixture(scope="session")
def vm_server(pytestconfig: pytest.Config) -> Server:
    """The connected hypervisor with its image store, as a `Server`.

    For tests that make and operate machines by themselves: `vm_server.instance(name, image)`,
    `vm_server.launch(image=...)`, `vm_server.machines()`, `vm_server.images`. What a test makes so, it has to
    destroy: the objects are context managers. If it fails, its report tells of them as of those of fixtures.
    """
    return run_of(pytestconfig).server()


@pytest.fixture
def vm_image(request: pytest.FixtureRequest) -> ImageModel:
    """The image model that the test's `vm` marker selects, built or downloaded if it is not there yet.

    Attributes: name, disk, format, login, os_family, os_version, os_64_bit, packager, description, and more.
    Without a marker: the option --vm-image (default: tiny).
    """
    run = run_of(request.config)
    vm = marked_request(request.node, run.settings)
    selector = getattr(request, "param", None) or (vm.images or run.settings.image)[0]
    return run.image(selector, vm, fixture="vm_image", scope=request.node)


@pytest.fixture
def vm_instance(request: pytest.FixtureRequest, vm_image: ImageModel) -> Iterator[Node]:
    """A fresh virtual machine for this test alone, booted and connected by SSH, as a `Node`.

    It is cloned from the image that the marker names and destroyed after the test:

        @pytest.mark.vm(image="tiny")
        def test_kernel(vm_instance):
            assert vm_instance.check_output("uname -s") == "Linux"

    Calls: run, check_output, wait_until, put, get, read_text, write_text, forward, reboot, pause, resume,
    snapshot, revert, console, screenshot, send_keys. Attributes: name, ip, host, port, user, image, instance.
    For a wider scope see `pytest_vmfest.instance_fixture`.
    """
    run = run_of(request.config)
    vm = marked_request(request.node, run.settings)
    with run.node(vm, vm_image, fixture="vm_instance", scope=request.node) as node:
        yield node


@pytest.fixture
def vm_group(request: pytest.FixtureRequest, vm_image: ImageModel) -> Iterator[NodeGroup]:
    """Fresh virtual machines that belong together, as a mapping of `Node` by name.

    They share a private network that no other group sees, and know each other by name:

        @pytest.mark.vm(image="tiny", nodes={"db": 1, "web": 2})
        def test_cluster(vm_group):
            for web in vm_group.role("web"):
                web.check_output("ping -c1 db-0")

    `nodes=3` makes node-0 to node-2. All are started, in parallel, or none; all are destroyed after the test.
    For a wider scope see `pytest_vmfest.group_fixture`.
    """
    run = run_of(request.config)
    vm = marked_request(request.node, run.settings)
    with run.group(vm, vm_image, fixture="vm_group", scope=request.node) as group:
        yield group


@pytest.fixture(scope="session")
def _vm_default_image(request: pytest.FixtureRequest) -> Any:
    """The image for fixtures made by a factory that names none; one of several --vm-image."""
    return getattr(request, "param", None) or request.config.stash[SETTINGS].image[0]
