"""What on a guest's console is an alarm: the kernel or the system telling that it is in trouble."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A kernel's message stands at the begin of a line or after its time and origin ("[   12.3][  T1] "): what
# programs write in the middle of a line is not meant.
_KERNEL = r"(?:^|\]\s*|^<\d+>)"
_BUILT_IN = (
    # kernel/panic.c
    rf"{_KERNEL}Kernel panic - not syncing",
    # arch/x86/mm/fault.c, lib/bug.c, kernel/sched/core.c and others. Lock-ups tell more of a slow host: a
    # guest that is emulated or was paused has them without being in trouble.
    rf"{_KERNEL}BUG: (?!soft lockup|workqueue lockup)",
    rf"{_KERNEL}kernel BUG at ",
    # arch/x86/kernel/dumpstack.c: "Oops: 0002 [#1] SMP", and "general protection fault: 0000 [#1]"
    rf"{_KERNEL}Oops: ",
    r": [0-9a-f]{4} \[#\d+\]",
    # mm/oom_kill.c; a control group's own limit ("Memory cgroup out of memory") is not the machine's trouble.
    rf"{_KERNEL}Out of memory: Kill(?:ed)? process",
    # systemd's src/sulogin-shell, and dracut
    r"You are in emergency mode",
    r"Entering emergency mode",
)
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE_CHARACTERS = 300


@dataclass(frozen=True)
class Alarm:
    """A line on the console of a node."""

    node: str
    machine: str
    line: str

    def __str__(self) -> str:
        """``the console of db-0 says: [  12.3] Out of memory: Killed process 77 (db)``."""
        return f"the console of {self.node} says: {self.line}"


def alarm_patterns(own: Sequence[str]) -> list[re.Pattern[str]]:
    """The built-in patterns and further ones."""
    return [re.compile(pattern) for pattern in (*_BUILT_IN, *own)]


def alarming(
    text: str, patterns: Sequence[re.Pattern[str]], expected: Sequence[re.Pattern[str]] = ()
) -> Iterator[str]:
    """The lines of ``text`` that match one of ``patterns`` and none of ``expected``."""
    for raw in text.splitlines():
        line = _ESCAPES.sub("", raw).strip()
        if _matches(line, patterns) and not _matches(line, expected):
            yield line[:_LINE_CHARACTERS]


def _matches(line: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.search(line) for pattern in patterns)
