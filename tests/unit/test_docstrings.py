"""The examples in docstrings are so."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    "module",
    ["waiting", "specs", "keyboard", "shell", "instance", "node", "group", "server", "factories"],
)
def test_examples_in_docstrings(module, tmp_path, monkeypatch):
    """Each example prints what it says; machines in them are fake ones in a store of their own."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path))
    found = import_module(f"pytest_vmfest.{module}")
    result = doctest.testmod(found, extraglobs={"__name__": found.__name__})
    assert result.attempted > 0
    assert result.failed == 0
