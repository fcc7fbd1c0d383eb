"""Whether a test has failed, or what it stands on: that is an error, as it is in setup and teardown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.errors import of_infrastructure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_vmfest.look import Look

# An attribute of reports: those go from xdist's workers to the controller.
_ERROR = "vmfest_error"


def judge(report: pytest.TestReport, error: BaseException | None, looks: Sequence[Look]) -> None:
    """Make a failure in the middle of a test an error if it comes of the infrastructure.

    So it does if ``error`` says so, or if the hypervisor has let one of the test's machines down, whatever
    the test has noticed of it. A guest that has told of trouble itself is the test's own matter.
    """
    let_down = any(look.let_down and not look.alarms for look in looks)
    if report.when == "call" and report.failed and (let_down or of_infrastructure(error)):
        setattr(report, _ERROR, True)


def is_error(report: pytest.CollectReport | pytest.TestReport) -> bool:
    """Whether a report that says "failed" is to be told as an error."""
    return report.failed and getattr(report, _ERROR, False)


def told_in_junit(config: pytest.Config, report: pytest.TestReport) -> None:
    """Where JUnit's XML has told of a failure, let it tell of an error.

    There is no public way: pytest takes all that fails in the middle of a test for a failure.
    """
    try:
        from _pytest.junitxml import xml_key

        xml = config.stash[xml_key]
        elements = [one for one in xml.node_reporter(report).nodes if one.tag == "failure"]
        for element in elements:
            element.tag = "error"
            xml.stats["failure"] -= 1
            xml.stats["error"] += 1
    except (ImportError, LookupError, AttributeError):
        return  # no such XML is written, or pytest does it in another way by now
