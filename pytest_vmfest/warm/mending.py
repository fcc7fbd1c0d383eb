"""Making a resumed guest itself: until then it is its template's twin, at the time of its freezing."""

from __future__ import annotations

import secrets
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

MENDER = "/var/lib/vmfest/mend"
"""Where guests have the program ``mend.S``."""
_CLOCK = struct.Struct("<qq")
_CLOCK_READINGS = 5


def program() -> bytes:
    """The program, for Linux on x86-64."""
    return Path(__file__).with_name("mend.bin").read_bytes()


def bring_script() -> str:
    """A POSIX shell script, run as root with the program on standard input: the guest has it then."""
    folder = MENDER.rpartition("/")[0]
    return f"mkdir -p {folder} && cat > {MENDER} && chmod 755 {MENDER}"


def mend_command(seconds: float = 0.0, text: str = "") -> str:
    """Shell text: set the clock forward, and mix ``text`` into the kernel's random numbers."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{MENDER} {whole} {micro} '{text}'"


def wake_script(late_s: float | None) -> str:
    """A POSIX shell script, to be run as root in a guest that goes on with memory from some time ago.

    It is ``late_s`` seconds late, and writes what its clock is then, for `clock_of`. Where that is not known,
    its clock is right to a second or so, until `set_clock`. Where the program does not run, it stays so, and
    the kernel's random numbers differ from others' after their next reseeding.
    """
    date = f"date -u -s @{round(time.time())} > /dev/null"
    text = secrets.token_hex(32)
    lines = [f"{mend_command(late_s or 0.0, text)} 2> /dev/null || {date}", f"echo {text} > /dev/urandom"]
    return "\n".join(lines if late_s is not None else [date, *lines])


def set_clock(run: Callable[[str], bytes], wrong_s: float = 0.0, *, readings: int = _CLOCK_READINGS) -> None:
    """Set the guest's clock by this host's, as precise as `lateness_s`; ``wrong_s`` late if that is meant.

    ``run`` runs shell text as root in it. Without the program, nothing is done.
    """
    late_s = lateness_s(run, readings)
    if late_s is not None:
        run(mend_command(late_s - wrong_s))


def lateness_s(run: Callable[[str], bytes], readings: int = _CLOCK_READINGS) -> float | None:
    """By how much the guest's clock is late: right to half the time of the quickest of so many readings.

    ``run`` runs shell text as root in it. None without the program.
    """
    found = []
    for _ in range(readings):
        began = time.time()
        try:
            told = clock_of(run(mend_command()))
        except CommandError:
            told = None
        ended = time.time()
        if told is None:
            return None
        found.append((ended - began, (began + ended) / 2 - told))
    return min(found)[1]


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
