"""In the guest: a pytest plugin that tells the lane what happens, one line of JSON per event.

Loaded with ``-p tests.lane.guest_plugin``. The lines go to the descriptor in LANE_EVENTS_FD; LANE_ROOT is
the folder below which machines live, LANE_KEPT where their logs are kept.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.lane.keeper import keep, marks_since, tails_since
from tests.lane.marks import marks_in

_TEXT_LIMIT = 20_000


class Reporter:
    """Tells each test's beginning and end, and each SSH session."""

    def __init__(self, fd: int, root: Path, kept: Path) -> None:
        """Tell on ``fd``, which children don't inherit: they would keep the line open."""
        os.set_inheritable(fd, False)
        self._fd = fd
        self._root = root
        self._kept = kept
        self._lock = threading.Lock()
        self._reports: list[pytest.TestReport] = []
        self._began = 0.0
        self._tails: dict[str, str] = {}

    def tell(self, event: str, **what: object) -> None:
        """Write one event."""
        data = json.dumps({"event": event, **what}).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]

    # --- the session -------------------------------------------------------------------------------

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tell what will run."""
        self.tell("collected", ids=[item.nodeid for item in session.items])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Tell that all is over."""
        self.tell("finished", status=int(exitstatus))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell what cannot be collected, and what does not want to."""
        if report.failed:
            self.tell("uncollectable", id=report.nodeid, text=report.longreprtext[-_TEXT_LIMIT:])
        elif report.skipped:
            self.tell("left_out", id=report.nodeid, text=_text(report))

    # --- a test ------------------------------------------------------------------------------------

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Tell that a test begins."""
        self._reports.clear()
        self._tails.clear()
        self._began = time.time()
        self.tell("began", id=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the part's outcome; keep the logs before a teardown takes them."""
        self._reports.append(report)
        if report.failed:
            keep(self._root, self._kept)
            self._tails |= tails_since(self._kept, self._began)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Tell how the test ended."""
        keep(self._root, self._kept)
        failed = [report for report in self._reports if report.failed]
        skipped = [report for report in self._reports if report.skipped]
        chosen = failed or skipped
        text = "\n".join(f"[{report.when}] {_text(report)}" for report in chosen)[-_TEXT_LIMIT:]
        marks = marks_since(self._kept, self._began) | marks_in(text) if failed else set()
        self.tell(
            "ended",
            id=nodeid,
            outcome="failed" if failed else "skipped" if skipped else "passed",
            duration_s=round(sum(report.duration for report in self._reports), 2),
            text=text,
            marks=sorted(marks),
            tails=self._tails,
        )


def _text(report: pytest.TestReport | pytest.CollectReport) -> str:
    if report.skipped:
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else getattr(report, "wasxfail", "")
        return str(reason)
    return "\n".join([report.longreprtext, *(f"--- {title}\n{body}" for title, body in report.sections)])


def _tell_ssh_sessions(reporter: Reporter) -> None:
    """Have each login that succeeds told, with the address that it went to."""
    import paramiko

    login = paramiko.Transport.auth_publickey

    def told(self: paramiko.Transport, *arguments: object, **options: object) -> object:
        answer = login(self, *arguments, **options)
        if self.is_authenticated():
            reporter.tell("ssh", address=self.getpeername()[0])
        return answer

    paramiko.Transport.auth_publickey = told


def pytest_configure(config: pytest.Config) -> None:
    """Begin to tell, in the lane's own pytest; one that a test runs stays silent."""
    fd = os.environ.pop("LANE_EVENTS_FD", None)
    if fd is None:
        return
    reporter = Reporter(int(fd), Path(os.environ["LANE_ROOT"]), Path(os.environ["LANE_KEPT"]))
    config.pluginmanager.register(reporter, "lane-reporter")
    _tell_ssh_sessions(reporter)
