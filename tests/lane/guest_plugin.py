"""In the guest: a pytest plugin that tells the lane what happens, one line of JSON per event.

Loaded with ``-p tests.lane.guest_plugin``. The lines go to the descriptor in LANE_EVENTS_FD; LANE_ROOT is
the folder below which machines live, LANE_KEPT where their logs are kept, LANE_LOGINS the file in which
`tests.lane.logins` notes SSH logins.
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

    def __init__(self, fd: int, root: Path, kept: Path, logins: Path) -> None:
        """Tell on ``fd``, which children don't inherit: they would keep the line open."""
        os.set_inheritable(fd, False)
        self._fd = fd
        self._root = root
        self._kept = kept
        self._logins = logins
        self._logins_told = len(self._addresses())
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
        self._tell_logins()
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

    def _tell_logins(self) -> None:
        """Tell the SSH sessions of the test, and of what it ran."""
        addresses = self._addresses()
        for address in addresses[self._logins_told :]:
            self.tell("ssh", address=address)
        self._logins_told = len(addresses)

    def _addresses(self) -> list[str]:
        return self._logins.read_text().splitlines() if self._logins.exists() else []


def _text(report: pytest.TestReport | pytest.CollectReport) -> str:
    if report.skipped:
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else getattr(report, "wasxfail", "")
        return str(reason)
    return "\n".join([report.longreprtext, *(f"--- {title}\n{body}" for title, body in report.sections)])


def pytest_configure(config: pytest.Config) -> None:
    """Begin to tell, in the lane's own pytest; one that a test runs stays silent."""
    fd = os.environ.pop("LANE_EVENTS_FD", None)
    if fd is None:
        return
    root, kept, logins = (Path(os.environ[name]) for name in ("LANE_ROOT", "LANE_KEPT", "LANE_LOGINS"))
    config.pluginmanager.register(Reporter(int(fd), root, kept, logins), "lane-reporter")
