"""What all tests share: the plugin's own tests run pytest inside pytest."""

from itertools import pairwise

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def pytester(pytester, pytestconfig, monkeypatch):
    """A pytest inside pytest is without the plugins that ours is without."""
    without = [f"-p {name}" for option, name in pairwise(pytestconfig.getini("addopts")) if option == "-p"]
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(without))
    return pytester
