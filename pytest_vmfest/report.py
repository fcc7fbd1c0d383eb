"""What the plugin says in the terminal: progress, durations, machines that were kept."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_vmfest.run import Kept, Phase

if TYPE_CHECKING:
    import pytest
    from _pytest.terminal import TerminalReporter

    from pytest_vmfest.progress import Step
    from pytest_vmfest.run import Run

# A step that only counts bytes is told again after this many seconds.
_EVERY_S = 5.0
WORKER_KEY = "vmfest"


class Teller:
    """Shows progress while pytest captures output: in the terminal, or in a worker on standard error."""

    def __init__(self, config: pytest.Config) -> None:
        """Remember where pytest's terminal and capture are to be found."""
        self._config = config
        self._last = ""
        self._told = 0.0

    def __call__(self, step: Step) -> None:
        """Tell one step: at once when it is a new one, else every few seconds."""
        now = time.monotonic()
        text = f"{step.task}: {step.text}"
        if text == self._last and now - self._told < _EVERY_S:
            return
        if step.total and step.done:
            amount = f" {step.done >> 20} of {step.total >> 20} MiB ({100 * step.done // step.total} %)"
        else:
            amount = ""
        self._last, self._told = text, now
        self._write(f"vmfest: {text}{amount}")

    def _write(self, line: str) -> None:
        plugins = self._config.pluginmanager
        reporter: Any = plugins.get_plugin("terminalreporter")
        if reporter is None or hasattr(self._config, "workerinput"):
            print(line, file=sys.__stderr__, flush=True)
            return
        capture: Any = plugins.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(line)


def to_worker_output(run: Run) -> dict[str, Any]:
    """What an xdist worker sends to its controller, as plain data."""
    return {"phases": [asdict(one) for one in run.phases], "kept": [asdict(one) for one in run.kept]}


def from_worker_output(run: Run, data: dict[str, Any]) -> None:
    """Add what a worker sent to the controller's run."""
    run.phases += [Phase(**one) for one in data["phases"]]
    run.kept += [Kept(**one) for one in data["kept"]]


def show_kept(run: Run, terminal: TerminalReporter) -> None:
    """Tell which machines are still there, how to get in and how to get rid of them."""
    if not run.kept:
        return
    terminal.section("vmfest: machines kept")
    for kept in run.kept:
        terminal.write_line(f"{kept.machine}  (of {kept.test})")
        terminal.write_line(f"    {kept.ssh_command}")
        terminal.write_line(f"    vmfest instance destroy {kept.machine}")


def show_durations(run: Run, terminal: TerminalReporter) -> None:
    """Tell what each test's machines spent their time on, in seconds."""
    if not run.settings.durations or not run.phases:
        return
    terminal.section("vmfest: durations in seconds")
    rows: dict[tuple[str, str], list[str]] = {}
    for phase in run.phases:
        rows.setdefault((phase.test, phase.node), []).append(f"{phase.phase} {phase.seconds:.2f}")
    last = ""
    for (test, node), phases in rows.items():
        if test != last:
            terminal.write_line(test)
            last = test
        terminal.write_line(f"    {'' if node == '-' else node + ': '}{', '.join(phases)}")
