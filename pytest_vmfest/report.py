"""What the plugin says in the terminal: progress, durations, machines that were kept."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_vmfest.phases import Phase
from pytest_vmfest.run import Kept

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from _pytest.terminal import TerminalReporter

    from pytest_vmfest.run import Run

WORKER_KEY = "vmfest"


def line_writer(config: pytest.Config) -> Callable[[str], None]:
    """Writes lines while pytest captures output: to the terminal, or in a worker to standard error."""
    plugins = config.pluginmanager

    def write(line: str) -> None:
        reporter: Any = plugins.get_plugin("terminalreporter")
        if reporter is None or hasattr(config, "workerinput"):
            print(f"vmfest: {line}", file=sys.__stderr__, flush=True)
            return
        capture: Any = plugins.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(f"vmfest: {line}")
            reporter.flush()  # it is news, also in a log file

    return write


def to_worker_output(run: Run) -> dict[str, Any]:
    """What an xdist worker sends to its controller at its end, as plain data."""
    return {**news(run), "kept": [asdict(one) for one in run.kept]}


def from_worker_output(run: Run, data: dict[str, Any]) -> None:
    """Add what a worker sent to the controller's run."""
    run.id = data["run"]
    run.times.phases += [Phase(**one) for one in data["phases"]]
    told = {one.machine for one in run.kept}  # several workers may have kept a machine that they shared
    run.kept += [Kept(**one) for one in data.get("kept", []) if one["machine"] not in told]


def news(run: Run) -> dict[str, Any]:
    """What it sends already with a test's report: of a worker that crashes, nothing else comes."""
    return {"run": run.id, "phases": [asdict(one) for one in run.times.unsent()]}


def show_kept(run: Run, terminal: TerminalReporter) -> None:
    """Tell which machines are still there, how to get in and how to get rid of them."""
    if not run.kept:
        return
    terminal.section("vmfest: machines kept")
    for kept in run.kept:
        until = time.strftime("%H:%M", time.localtime(kept.until))
        terminal.write_line(f"{kept.machine}  (of {kept.test}, until {until})")
        terminal.write_line(f"    {kept.ssh_command or f'vmfest instance console {kept.machine}'}")
        terminal.write_line(f"    vmfest instance destroy {kept.machine}")


def show_durations(run: Run, terminal: TerminalReporter) -> None:
    """Tell what each test's machines spent their time on, in seconds."""
    if not run.settings.durations or not run.times.phases:
        return
    terminal.section("vmfest: durations in seconds")
    rows: dict[tuple[str, str], list[str]] = {}
    for phase in sorted(run.times.phases, key=lambda phase: phase.worker):
        rows.setdefault((phase.test, phase.node), []).append(f"{phase.phase} {phase.seconds:.2f}")
    last = ""
    for (test, node), phases in rows.items():
        if test != last:
            terminal.write_line(test)
            last = test
        terminal.write_line(f"    {node and node + ': '}{', '.join(phases)}")
