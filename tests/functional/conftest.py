"""Functional tests boot real machines, on the user's own image store, as users' tests do."""

import os
from pathlib import Path

import pytest

from pytest_vmfest import instance_fixture
from pytest_vmfest.config import store_home

HERE = Path(__file__).parent

box = instance_fixture(scope="module", image="tiny")


def pytest_collection_modifyitems(items):
    """Mark everything in this folder, so that `-m "not functional"` leaves real machines out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.functional)


@pytest.fixture
def own_home(vm_server, tmp_path_factory, monkeypatch):
    """A store of the test's own that has `tiny`, linked from the user's; VMFEST_HOME points to it."""
    vm_server.images.resolve("tiny")
    home = tmp_path_factory.mktemp("home")
    for source in (store_home() / "images" / "tiny").rglob("*"):
        target = home / source.relative_to(store_home())
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.link(source, target)
    monkeypatch.setenv("VMFEST_HOME", str(home))
    return home
