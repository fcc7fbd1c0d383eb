"""Progress in a terminal: one live line. Loaded only where there is a terminal, because rich costs time."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.text import Text

from pytest_vmfest.cli.units import size

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

    from pytest_vmfest.progress import Step


class LiveLine:
    """A `Progress` that shows the present step; a finished one leaves no line behind."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Amount(),
            console=Console(stderr=True),
            transient=True,
        )
        self._shown = ("", "")
        self._task: TaskID | None = None

    def __enter__(self) -> LiveLine:
        """Begin with the first step, so that work without any shows nothing."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Take the line away."""
        self._display.stop()

    def __call__(self, step: Step) -> None:
        """Show one step."""
        if self._task is None or self._shown != (step.task, step.text):
            if self._task is None:
                self._display.start()
            else:
                self._display.remove_task(self._task)
            self._task = self._display.add_task(f"{step.task}: {step.text}", total=None)
            self._shown = (step.task, step.text)
        if step.done is not None:
            self._display.update(self._task, completed=step.done, total=step.total)


class _Amount(ProgressColumn):
    """Amount, rate and time left of a step that counts bytes; the seconds so far of another."""

    def render(self, task: Task) -> Text:
        """Text for the line's end."""
        elapsed = timedelta(seconds=int(task.elapsed or 0))
        if not task.completed:
            return Text(str(elapsed), style="progress.elapsed")
        total = f" of {size(task.total)}" if task.total else ""
        rate = f", {size(task.speed)}/s" if task.speed else ""
        left = f", {timedelta(seconds=task.time_remaining)} left" if task.time_remaining else ""
        return Text(f"{size(task.completed)}{total}{rate}{left}", style="progress.download")
