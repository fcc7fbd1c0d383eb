"""Which errors tell of trouble of the infrastructure."""

import re

import pytest

from pytest_vmfest import errors
from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.refusals import wrong_state
from pytest_vmfest.errors import MachineGoneError, StoreError, VmfestError, of_infrastructure

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, VmfestError)
}


def test_each_is_told_where_the_tree_is():
    """The module's own list names those that always do."""
    told = errors.__doc__.partition("`VmfestError.infrastructure`), are:")[2].partition("; and of")[0]
    assert set(re.findall(r"\w+Error", told)) == {n for n, kind in KINDS.items() if kind.infrastructure}


def test_those_that_may_or_may_not():
    """It depends on what became of the machine."""
    assert not MachineGoneError("off").infrastructure
    assert MachineGoneError("killed", infrastructure=True).infrastructure
    told = {state: wrong_state("m", state, "run").infrastructure for state in MachineState}
    assert [state for state in told if told[state]] == [MachineState.ABORTED]


def raised(error, cause):
    """An error that was raised from another one."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, False),
        (AssertionError(), False),
        (StoreError("full"), True),
        (raised(AssertionError(), raised(OSError(), StoreError("full"))), True),
        (raised(MachineGoneError("off"), StoreError("full")), False),
        (ExceptionGroup("two", [ValueError(), ExceptionGroup("one", [StoreError("full")])]), True),
        (ExceptionGroup("two", [ValueError(), MachineGoneError("off")]), False),
    ],
)
def test_what_an_error_comes_of(error, expected):
    """Ours say so themselves; others by what they were raised from, and groups by what is in them."""
    assert of_infrastructure(error) is expected


def test_an_error_that_was_raised_from_itself():
    """There is an end to it."""
    error = ValueError()
    assert not of_infrastructure(raised(error, raised(OSError(), error)))
