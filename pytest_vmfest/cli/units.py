"""Amounts and times for humans."""

from __future__ import annotations

import time


def size(count: float) -> str:
    """Bytes for humans.

    >>> size(5 * 1024**3 // 2), size(17 << 20), size(12)
    ('2.5 GiB', '17.0 MiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def age(created: float) -> str:
    """The time since ``created`` (seconds since the epoch), in its largest unit."""
    seconds = max(0.0, time.time() - created)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds / length)} {unit}"
    return f"{int(seconds)} s"
