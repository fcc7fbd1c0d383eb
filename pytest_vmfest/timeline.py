"""A run drawn over time, as one HTML file that needs nothing else."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pytest_vmfest.phases import Phase

# In the legend's order; what a phase is called is also its class in timeline.html.
_LEGEND = {
    "setup": "a test's setup, with all that its fixtures do",
    "test": "the test itself",
    "teardown": "a test's or a machine's teardown",
    "image": "an image is fetched or built",
    "failed_start": "machines that did not come up",
    "template": "a machine is frozen, for others to resume from",
    "clone": "a machine is made from its image",
    "boot": "it boots, until its SSH server answers",
    "resume": "it resumes from its template",
    "ssh": "login",
    "address": "its network cards get their own addresses",
    "network": "its name and network are set up",
    "init_script": "its init script runs",
    "snapshot": "a snapshot is taken, to go back to",
    "reset": "it goes back to that",
    "spare": "taking one that was ready",
    "shared": "waiting for a machine or template that others make",
}
_STEPS_S = tuple(float(f"{digit}e{power}") for power in range(-3, 6) for digit in (1, 2, 5))
_VIEW = """<div class="view" hidden>
<label>zoom <input id="zoom" type="range" min="0" max="100" value="0"></label> <span id="scale"></span>
<button id="fit" type="button">fit</button>
<div id="about">Point at a bar to read what it is; click a name to go to its bars.</div>
</div>
"""
_WIDTH_PX = 900
_TICK_PX = 70


def write_timeline(path: Path, phases: Sequence[Phase], *, ended: float) -> None:
    """Write the timeline of a run that ended at ``ended`` (seconds since the epoch) to ``path``.

    What is at ``path`` is replaced, folders above it are made. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_text(timeline(phases, ended=ended), encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def timeline(phases: Sequence[Phase], *, ended: float) -> str:
    """The page as text; see `write_timeline`."""
    began = min((phase.began for phase in phases), default=ended)
    page = _Page(began, max([ended, *(phase.ended for phase in phases)]), frozenset(_failed_tests(phases)))
    template = Template(files("pytest_vmfest").joinpath("timeline.html").read_text(encoding="utf-8"))
    return template.substitute(
        when=_moment(began),
        summary="".join(page.summary(phases)),
        controls="".join(page.controls(phases)) if phases else "",
        chart="".join(page.chart(phases)) if phases else "",
    )


@dataclass(frozen=True)
class _Page:
    """What all parts of the page have to know of the run."""

    began: float
    ended: float
    failed: frozenset[str]

    @property
    def seconds(self) -> float:
        return max(self.ended - self.began, 0.001)

    def summary(self, phases: Sequence[Phase]) -> Iterator[str]:
        if not phases:
            yield f"<p>No machines were used in this run, which ended on {_moment(self.ended)}.</p>\n"
            return
        tests = {phase.test for phase in phases if not phase.machine and phase.phase != "image"}
        machines = {phase.machine for phase in phases if phase.machine}
        yield f"<span>{_moment(self.began)}, {self.seconds:.1f} s: {_count(len(tests), 'test')} "
        yield f"with {_count(len(machines), 'machine')}</span>"
        if self.failed:
            yield f', <span class="wrong">{len(self.failed)} failed</span>'
        yield "\n"

    def controls(self, phases: Sequence[Phase]) -> Iterator[str]:
        """The legend, with what each phase took in all, and the zoom."""
        yield '<ul class="legend">\n'
        for name in sorted({phase.phase for phase in phases}, key=_rank):
            lasted = [phase.seconds for phase in phases if phase.phase == name]
            meaning = escape(_LEGEND.get(name, ""))
            yield f'<li title="{meaning}"><i class="{escape(name)}"></i>{escape(name)} '
            yield f"<small>{sum(lasted):.1f} s, {len(lasted)} times</small></li>\n"
        if self.failed:
            yield '<li><i class="bar failed" style="position:static"></i>failed test</li>\n'
        yield '<li><i class="life"></i>a machine is there</li>\n</ul>\n'
        yield _VIEW

    def chart(self, phases: Sequence[Phase]) -> Iterator[str]:
        scale = _WIDTH_PX / self.seconds
        step = next((step for step in _STEPS_S if step * scale >= _TICK_PX), _STEPS_S[-1])
        yield f'<main id="chart" data-end="{self.seconds:.3f}" data-steps="{" ".join(map(str, _STEPS_S))}" '
        yield f'style="--end:{self.seconds:.3f};--pps:{scale:.6g};--step:{step:g}">\n'
        yield '<div class="axis"><div class="name">worker, test</div><div class="track" id="axis">'
        for number in range(math.floor(self.seconds / step) + 1):
            yield f'<span class="tick" style="--s:{number * step:g}">{number * step:g} s</span>'
        yield "</div></div>\n"
        for worker in sorted({phase.worker for phase in phases}, key=lambda name: (len(name), name)):
            yield from self._worker(worker, [phase for phase in phases if phase.worker == worker])
        yield "</main>\n"

    def _worker(self, worker: str, phases: Sequence[Phase]) -> Iterator[str]:
        """A worker's lane, which holds its tests one after the other, and below it each in a row."""
        rows = _grouped(phases, lambda phase: phase.test)
        own = [phase for phase in phases if not phase.machine and phase.phase != "image"]
        tests = len({phase.test for phase in own})
        yield f'<details class="worker" open>\n<summary><div class="name">{escape(worker)}'
        yield f"<small>{_count(tests, 'test')}</small></div>"
        yield f'<div class="track"><div class="line">{"".join(map(self._bar, own))}</div></div></summary>\n'
        for test, its in rows:
            yield from self._row(test, its)
        yield "</details>\n"

    def _row(self, test: str, phases: Sequence[Phase]) -> Iterator[str]:
        failed = test in self.failed
        where, what = _named(test)
        shown = f'<span class="place">{escape(where)}</span><span class="what">'
        shown += f"{'✗ ' if failed else ''}{escape(what)}</span>"
        title = escape(test + ("\nfailed" if failed else ""))
        yield f'<div class="row{" failed" if failed else ""}">'
        yield f'<button class="name" type="button" title="{title}">{shown}</button><div class="track">'
        for machine, its in sorted(
            _grouped(phases, lambda phase: phase.machine), key=lambda one: one[0] != ""
        ):
            life = self._life(its) if machine else ""
            yield f'<div class="line">{life}{"".join(map(self._bar, its))}</div>'
        yield "</div></div>\n"

    def _life(self, phases: Sequence[Phase]) -> str:
        """The time for which a machine was there; one that was not destroyed still is at the end."""
        names = {phase.phase for phase in phases}
        if "clone" not in names:
            return ""
        end = max(phase.ended for phase in phases) if "teardown" in names else self.ended
        began = min(phase.began for phase in phases)
        first = phases[0]
        title = f"node {first.node} (machine {first.machine}): {end - began:.3f} s\n{first.test}"
        return f'<i class="life" style="{self._place(began, end - began)}" title="{escape(title)}"></i>'

    def _bar(self, phase: Phase) -> str:
        start = phase.began - self.began
        lines = [f"{phase.phase}: {phase.seconds:.3f} s" + (" (failed)" if phase.failed else ""), phase.test]
        if phase.machine:
            lines.append(f"node {phase.node} (machine {phase.machine})")
        lines.append(f"from {start:.3f} s to {start + phase.seconds:.3f} s, worker {phase.worker}")
        kind = f"bar {phase.phase}" + (" failed" if phase.failed else "")
        place = self._place(phase.began, phase.seconds)
        title = escape("\n".join(lines))
        return f'<i class="{escape(kind)}" style="{place}" title="{title}"></i>'

    def _place(self, began: float, seconds: float) -> str:
        return f"--s:{began - self.began:.3f};--d:{seconds:.3f}"


def _grouped(phases: Iterable[Phase], key: Callable[[Phase], str]) -> list[tuple[str, list[Phase]]]:
    """The phases by ``key``, each group and all groups in the order in which they began."""
    groups: dict[str, list[Phase]] = {}
    for phase in sorted(phases, key=lambda phase: (phase.began, -phase.seconds)):
        groups.setdefault(key(phase), []).append(phase)
    return list(groups.items())


def _failed_tests(phases: Sequence[Phase]) -> set[str]:
    """The tests that failed; of one that was run again the last time counts."""
    failed = set()
    for phase in phases:
        if phase.failed:
            failed.add(phase.test)
        elif phase.phase == "setup":
            failed.discard(phase.test)
    return failed


def _named(test: str) -> tuple[str, str]:
    """A test's place and its own name, parameters included; likewise of a fixture of a wider scope."""
    path, bracket, parameters = test.partition("[")
    where, mark, what = path.rpartition("::" if "::" in path else ": ")
    return where + mark, what + bracket + parameters


def _rank(name: str) -> tuple[int, str]:
    names = list(_LEGEND)
    return (names.index(name) if name in names else len(names), name)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
