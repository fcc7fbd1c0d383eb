"""Making a resumed guest itself: until then it is its template's twin, at the time of its freezing."""

from __future__ import annotations

import secrets
import struct
import time
from pathlib import Path

MENDER = "/var/lib/vmfest/mend"
"""Where guests have the program ``mend.S``."""
_CLOCK = struct.Struct("<qq")


def program() -> bytes:
    """The program, for Linux on x86-64."""
    return Path(__file__).with_name("mend.bin").read_bytes()


def mend_command(seconds: float = 0.0, text: str = "") -> str:
    """Shell text: set the clock forward, and mix ``text`` into the kernel's random numbers."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{MENDER} {whole} {micro} '{text}'"


def wake_script(late_s: float | None) -> str:
    """A POSIX shell script, to be run as root in a guest that goes on with memory from some time ago.

    It is ``late_s`` seconds late, and writes what its clock is then, for `clock_of`. Where that is not known,
    or the program does not run, the clock is right to a second or so, nothing is written, and the kernel's
    random numbers differ from others' after their next reseeding.
    """
    date = f"date -u -s @{round(time.time())} > /dev/null"
    if late_s is None:
        return date
    text = secrets.token_hex(32)
    return f"if ! {mend_command(late_s, text)} 2> /dev/null; then\n  {date}\n  echo {text} > /dev/urandom\nfi"


def clock_of(told: bytes) -> float | None:
    """What the program told of the guest's clock, in seconds since the epoch; None if it told nothing."""
    if len(told) < _CLOCK.size:
        return None
    seconds, nanoseconds = _CLOCK.unpack_from(told)
    return float(seconds + nanoseconds / 1e9)


def script(late_s: float | None) -> str:
    """A POSIX shell script, to be run as root once in a guest that was resumed from a template."""
    machine_id = secrets.token_hex(16)
    return "\n".join(
        [
            wake_script(late_s),
            "if [ -s /etc/machine-id ] && read -r old < /etc/machine-id; then",
            # Those who read it at their start go on with the old one, as after a change by hand.
            f"  echo {machine_id} > /etc/machine-id",
            # Journals are found by it.
            f'  [ ! -d "/var/log/journal/$old" ] || mv "/var/log/journal/$old" /var/log/journal/{machine_id}',
            "fi",
        ]
    )
