"""Making a resumed guest itself: until then it is its template's twin, at the time of its freezing."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

MENDER = "/var/lib/vmfest/mend"
"""Where guests have the program ``mend.S``."""


def program() -> bytes:
    """The program, for Linux on x86-64."""
    return Path(__file__).with_name("mend.bin").read_bytes()


def mend_command(seconds: float = 0.0, text: str = "") -> str:
    """Shell text: set the clock forward, and mix ``text`` into the kernel's random numbers."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{MENDER} {whole} {micro} '{text}'"


def script(late_s: float) -> str:
    """A POSIX shell script, to be run as root once after a guest was resumed that is ``late_s`` seconds late.

    Where the program does not run, the clock is right to a second or so, and the kernel's random numbers
    differ after its next reseeding.
    """
    text, machine_id = secrets.token_hex(32), secrets.token_hex(16)
    return "\n".join(
        [
            f"if ! {mend_command(late_s, text)} > /dev/null 2>&1; then",
            f"  date -u -s @{round(time.time())} > /dev/null",
            f"  echo {text} > /dev/urandom",
            "fi",
            "if [ -s /etc/machine-id ] && read -r old < /etc/machine-id; then",
            # Those who read it at their start go on with the old one, as after a change by hand.
            f"  echo {machine_id} > /etc/machine-id",
            # Journals are found by it.
            f'  [ ! -d "/var/log/journal/$old" ] || mv "/var/log/journal/$old" /var/log/journal/{machine_id}',
            "fi",
        ]
    )
