"""What a failing test's report says of the machines that the test used."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pytest_vmfest.errors import failed_starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_vmfest.alarms import Alarm
    from pytest_vmfest.journal import Remembered, Said
    from pytest_vmfest.look import Look
    from pytest_vmfest.run import Run

_TITLE = "vmfest: "
_ALARMS = 5
_COMMANDS = 10
_OUTPUT_LINES = 20
_CONSOLE_LINES = 40
_LINE_CHARACTERS = 300
_TEXT_CHARACTERS = 12_000

# Escape sequences (ECMA-48: CSI; OSC up to its end; others of two characters), and further controls.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_LINE_ENDS = re.compile(r"\r+\n?")
_CONTROLS = re.compile(r"[^\n\t -~\xa0-\U0010ffff]|[\ud800-\udfff]")


def tell(
    run: Run, item: pytest.Item, report: pytest.TestReport, error: BaseException | None = None
) -> list[Look]:
    """Add to a failing test's report what there is to tell of the test's machines, and keep it if wished.

    ``error`` is what the test failed with: it may be that of machines that did not start. Returns what was
    found out.
    """
    looks = run.looks_of(item)
    starts = failed_starts(error)
    places: list[str] = []
    if run.artifacts and (looks or starts):
        about = {"test": item.nodeid, "when": report.when, "run": run.id, "worker": run.worker}
        try:
            folders = run.artifacts.keep(looks, about)
            folders += [run.artifacts.keep_failed_start(start, about) for start in starts]
            places = [f"artifacts: {folder}" for folder in folders]
        except OSError as trouble:
            places = [f"artifacts cannot be kept: {trouble}"] * (len(looks) + len(starts))
    places += [""] * (len(looks) + len(starts) - len(places))
    report.sections += [section(look, place) for look, place in zip(looks, places, strict=False)]
    report.sections += [
        (f"{_TITLE}node {start.node}, which did not start", place)
        for start, place in zip(starts, places[len(looks) :], strict=True)
        if place
    ]
    return looks


class ConsoleWarning(pytest.PytestWarning):
    """A guest's console has told of trouble while a test used it."""


def judge(item: pytest.Item, alarms: Sequence[Alarm], *, fatal: bool) -> None:
    """Fail the test because of what the consoles of its nodes said, or only warn."""
    __tracebackhide__ = True
    shown = [str(alarm) for alarm in alarms[:_ALARMS]]
    if len(alarms) > _ALARMS:
        shown.append(f"… ({len(alarms) - _ALARMS} lines more)")
    text = printable("\n".join(shown))
    if fatal:
        pytest.fail(text, pytrace=False)
    item.warn(ConsoleWarning(text))


def section(look: Look, place: str = "") -> tuple[str, str]:
    """A report's section about one node: title and text. ``place`` says where more is kept."""
    way_in = f"; {look.ssh_command}" if look.ssh_command else ""
    lines = [f"state: {look.state}{way_in}"]
    if look.let_down:
        lines.append(f"trouble of the infrastructure: {look.let_down}")
    lines += look.trouble
    if place:
        lines.append(place)
    lines += [f"alarm: {line}" for line in look.alarms[:_ALARMS]]
    lines += _commands(look.commands)
    lines += _console(look)
    title = f"{_TITLE}node {look.node} (machine {look.machine}, image {look.image})"
    return title, printable("\n".join(lines))


def printable(text: str) -> str:
    """Text for terminals and XML: without escape sequences, control characters and what is no Unicode."""
    text = _LINE_ENDS.sub("\n", _ESCAPES.sub("", text))
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def _commands(commands: Sequence[Remembered]) -> Iterator[str]:
    if not commands:
        yield "commands: none"
        return
    shown = commands[-_COMMANDS:]
    yield "commands:" if shown == commands else f"commands (the last {len(shown)}):"
    for command in shown:
        first, *more = _head(command.command, _OUTPUT_LINES)
        yield f"  $ {first}"
        yield from (f"    {line}" for line in (*more, command.heading))
        yield from _output("stdout", command.stdout)
        yield from _output("stderr", command.stderr)


def _output(name: str, said: Said) -> Iterator[str]:
    if said.text.strip():
        cut = f" (the end of {said.characters} characters)" if said.characters > len(said.text) else ""
        yield f"    {name}{cut}:"
        yield from (f"      {line}" for line in _tail(said.text, _OUTPUT_LINES))


def _console(look: Look) -> Iterator[str]:
    text = look.console_of_test
    if not text.strip():
        yield "console since the test began: nothing"
        return
    yield "console since the test began:"
    yield from (f"  | {line}" for line in _tail(text, _CONSOLE_LINES))


def _head(text: str, most: int) -> Iterator[str]:
    """The first lines, each bounded."""
    lines = printable(text[:_TEXT_CHARACTERS]).strip("\n").split("\n")
    yield from map(_bounded, lines[:most])
    if len(lines) > most:
        yield "…"


def _tail(text: str, most: int) -> Iterator[str]:
    """The last lines, each bounded."""
    lines = printable(text[-_TEXT_CHARACTERS:]).strip("\n").split("\n")
    if len(lines) > most or len(text) > _TEXT_CHARACTERS:
        yield "…"
    yield from map(_bounded, lines[-most:])


def _bounded(line: str) -> str:
    return line if len(line) <= _LINE_CHARACTERS else f"{line[:_LINE_CHARACTERS]} …"


@contextmanager
def told_in_the_failure(report: pytest.TestReport) -> Iterator[None]:
    """Let the failure's own text hold the sections instead, while plugins are given the report.

    JUnit's XML shows nothing else of a report, other reports show both. Of a try that is followed by another
    one nobody shows the sections: there they stay in the text.
    """
    shown: list[tuple[str, str, str]] | None = getattr(report.longrepr, "sections", None)
    if shown is None:
        yield
        return
    text, sections = list(shown), list(report.sections)
    ours = [one for one in sections if one[0].startswith(_TITLE)]
    shown += [(title, content, "-") for title, content in ours]
    report.sections[:] = [one for one in sections if one not in ours]
    try:
        yield
    finally:
        if report.failed:
            shown[:], report.sections[:] = text, sections
