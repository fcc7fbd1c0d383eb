"""What the guest writes to its first serial port, over all its starts.

VirtualBox empties the file at every start, so what an earlier one wrote is put aside first.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE = "console.log"


def begin(folder: Path) -> None:
    """Put aside what there is, before the machine is started."""
    with suppress(FileNotFoundError):
        (folder / FILE).rename(folder / f"console.{len(_put_aside(folder)) + 1:06}.log")


def text(folder: Path) -> str:
    """All that the guest wrote since the machine was created."""
    while True:
        before = _put_aside(folder)
        parts = []
        for path in (*before, folder / FILE):
            with suppress(FileNotFoundError):
                parts.append(path.read_bytes())
        if _put_aside(folder) == before:
            return b"".join(parts).decode(errors="replace")


def _put_aside(folder: Path) -> list[Path]:
    return sorted(folder.glob("console.*.log"))
