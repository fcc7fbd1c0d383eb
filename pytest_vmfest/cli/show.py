"""What the command line shows: tables, JSON, and progress; plain text where no terminal looks on."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pytest_vmfest.progress import LineProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_vmfest.progress import Progress


def note(text: str) -> None:
    """Tell the user something that is no result: it goes to standard error."""
    click.echo(text, err=True)


lines = LineProgress(note)
"""A `Progress` for work that takes no time: what it tells is worth a line."""


def as_json(data: Any) -> None:
    """Print ``data`` for programs."""
    click.echo(json.dumps(data, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``columns``: as a table in a terminal, else as aligned text without a frame."""
    if not sys.stdout.isatty():
        click.echo(aligned([[column.upper() for column in columns], *rows]))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    Console().print(made)


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """``rows`` as text, each column as wide as its widest cell.

    >>> print(aligned([["a", "b"], ["long", "c"]]))
    a     b
    long  c
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def mark(ok: bool) -> str:
    """✓ or ✗, styled; words where the terminal's encoding has no such characters."""
    text = "✓" if ok else "✗"
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = "ok" if ok else "NO"
    return click.style(text, fg="green" if ok else "red")


@contextmanager
def progress() -> Iterator[Progress]:
    """A `Progress` for long work: a live line with bar, rate and time left in a terminal, else plain lines.

    Everything goes to standard error, so that the result can be piped.
    """
    if not sys.stderr.isatty():
        yield LineProgress(note)
        return
    from pytest_vmfest.cli.live import LiveLine

    with LiveLine() as live:
        yield live
