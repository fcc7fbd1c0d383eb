"""In the guest: keeps VirtualBox's logs beyond their machines' lives, and gives a sign of life.

A machine's log is gone with the machine, often before anybody can ask why it failed. A hard link keeps it,
also what is written to it later. As a program (``python -m tests.lane.keeper ROOT KEPT``) it looks every two
seconds and prints a line each time: from a process of its own, as a test may wait for VirtualBox for long.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from tests.lane.marks import marks_in

BEAT_S = 2.0
_TAIL_BYTES = 12_000
# Thousands of counters at a log's end: "00:00:54.329378 /PROF/CPU0/EM/ForcedActions  19998 times".
_STATISTICS = re.compile(r"^[\d:.]+ /\S+ .*\n", re.MULTILINE)


def keep(root: Path, kept: Path) -> list[str]:
    """Link all new logs of machines below ``root`` into ``kept``; the names of all kept, one a start."""
    for folder, folders, files in os.walk(root):
        if Path(folder) == kept:
            folders.clear()
            continue
        for name in files:
            if name == "VBox.log":
                _link(Path(folder, name), kept)
    return sorted(path.stem for path in kept.glob("*.log"))


def _link(log: Path, kept: Path) -> None:
    try:
        # An inode is one start: VirtualBox renames the old log and opens a new file.
        target = kept / f"{log.parent.parent.name}-{log.stat().st_ino}.log"
        try:
            os.link(log, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copy2(log, target)  # anew each time, as it grows
    except (FileExistsError, FileNotFoundError):
        pass  # It is kept already, or its machine was just destroyed.


def changed_since(kept: Path, moment: float) -> list[Path]:
    """Kept logs that were written to since ``moment`` (seconds of the guest's clock)."""
    return sorted(path for path in kept.glob("*.log") if path.stat().st_mtime >= moment)


def marks_since(kept: Path, moment: float) -> set[str]:
    """The emulator's marks in the logs that changed since ``moment``."""
    found: set[str] = set()
    for path in changed_since(kept, moment):
        found |= marks_in(path.read_text(errors="replace"))
    return found


def tails_since(kept: Path, moment: float) -> dict[str, str]:
    """The ends of the logs that changed since ``moment``, by file name; of a guru meditation its head."""
    tails = {}
    for path in changed_since(kept, moment):
        text = _STATISTICS.sub("", path.read_text(errors="replace"))
        start = text.find("Guru Meditation")
        tails[path.name] = text[max(0, start - 2000) :][:_TAIL_BYTES] if start >= 0 else text[-_TAIL_BYTES:]
    return tails


def main() -> None:
    """Look and tell, until nobody listens any more."""
    root, kept = map(Path, sys.argv[1:])
    kept.mkdir(parents=True, exist_ok=True)
    while True:
        beat = {"event": "beat", "machines": keep(root, kept)}
        try:
            print(json.dumps(beat), flush=True)
        except BrokenPipeError:
            return
        time.sleep(BEAT_S)


if __name__ == "__main__":
    main()
