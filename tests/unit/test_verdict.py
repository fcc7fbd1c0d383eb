"""What makes a failed test an error, where pytest's own plugins differ from those that we know."""

from types import SimpleNamespace

import pytest
from _pytest.junitxml import xml_key

from pytest_vmfest import verdict


@pytest.mark.parametrize("xml", [None, object()], ids=["none is written", "another one"])
def test_other_junits_xml(xml):
    """The run goes on; the XML tells of a failure."""
    stash = pytest.Stash()
    if xml:
        stash[xml_key] = xml
    verdict.told_in_junit(SimpleNamespace(stash=stash), SimpleNamespace(nodeid="test_it"))
