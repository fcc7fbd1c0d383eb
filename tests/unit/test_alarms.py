"""Which lines of a console are alarms."""

import re

import pytest

from pytest_vmfest.alarms import alarm_patterns, alarming

TROUBLE = [
    "[    9.876543] Kernel panic - not syncing: sysrq triggered crash",
    "[    9.876543][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000",
    "tiny login: [   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "BUG: unable to handle page fault for address: ffffffffdeadbeef",
    "[   12.345678] kernel BUG at mm/slub.c:305!",
    "[   12.345678] Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "[   12.3] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
    "[   33.1] Out of memory: Killed process 77 (mysqld) total-vm:1kB, anon-rss:0kB, file-rss:0kB",
    "[   33.1] Out of memory: Kill process 77 (mysqld) score 9 or sacrifice child",
    'You are in emergency mode. After logging in, type "journalctl -xb" to view',
    "\x1b[1;31mEntering emergency mode. Exit the shell to continue.\x1b[0m",
]
ORDINARY = [
    "Welcome to Debian GNU/Linux 12 (bookworm)!",
    "[    0.000000] Command line: console=ttyS0 panic=-1 oops=panic",
    "[    0.4] printk: DEBUG: nothing to see",
    "[    1.1] BIOS-provided physical RAM map:",
    "[    2.2] ACPI BIOS Error (bug): Could not resolve symbol",
    "[    2.3] mce: CPU supports 10 MCE banks",
    "[   28.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]",
    "[   28.1] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
    "[   40.0] Memory cgroup out of memory: Killed process 99 (stress) total-vm:1kB",
    "[  OK  ] Reached target emergency.target - Emergency Mode.",
    "my program: Oops: that went wrong, BUG: 17",
    "systemd[1]: kernel panic handler loaded",
]


@pytest.mark.parametrize("line", TROUBLE)
def test_trouble(line):
    """A guest in trouble is noticed, with the line."""
    (told,) = alarming(f"before\r\n{line}\r\nafter\r\n", alarm_patterns([]))
    assert told in re.sub(r"\x1b\[[\d;]*m", "", line)


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_lines(line):
    """What ordinary boots and programs say is no alarm."""
    assert list(alarming(line, alarm_patterns([]))) == []


def test_own_patterns_and_what_is_expected():
    """Further patterns alarm besides the built-in ones; what is expected does not."""
    text = "FATAL: disk\nFATAL: fan\n[ 1.2] Oops: 0002 [#1] SMP\n"
    patterns = alarm_patterns(["(?i)fatal"])
    assert len(list(alarming(text, patterns))) == 3
    assert list(alarming(text, patterns, [re.compile("fan|Oops")])) == ["FATAL: disk"]
