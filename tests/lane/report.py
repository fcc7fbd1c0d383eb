"""The lane's last words, and its exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lane.outcomes import Book, Verdict

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from tests.lane.lane import Findings
    from tests.lane.outcomes import Record
    from tests.lane.suites import Suite

PROVED, FAILED, NO_ENVIRONMENT, NOT_PROVED = 0, 1, 3, 4
"""Exit statuses: all is proved; a test failed; no host could be made; too little was proved."""

LOCAL_NETWORK = "192.168.56."
"""The addresses on vboxnet0."""
ENOUGH = 0.9
"""The part of an essential suite's tests that has to pass; the emulator may break the rest."""


def shortcomings(book: Book, findings: Findings, suites: Sequence[Suite]) -> list[str]:
    """Why the essential part is not proved; empty when it is."""
    found = [f"suite {name!r} did not run: {why}" for name, why in findings.broken_suites.items()]
    for suite in suites:
        count = book.count(suite.name)
        expected = count.total() - count[Verdict.SKIPPED]
        if not suite.essential or suite.name in findings.broken_suites:
            continue
        if not count[Verdict.PASSED]:
            found.append(f"suite {suite.name!r}: no test passed")
        elif count[Verdict.PASSED] < ENOUGH * expected:
            found.append(
                f"suite {suite.name!r}: {count[Verdict.PASSED]} of {expected} tests passed, "
                f"{ENOUGH:.0%} are needed"
            )
    if not all(suite.plain for suite in suites):
        if not findings.machine_starts:
            found.append("no machine was seen starting")
        if not _local_sessions(findings):
            found.append("no SSH session over vboxnet0 was seen")
    if any(record.verdict is Verdict.NOT_RUN for record in book):
        found.append("some tests did not run")
    return found


def exit_status(book: Book, findings: Findings, suites: Sequence[Suite]) -> int:
    """What the lane's process ends with."""
    if book.count()[Verdict.FAILED]:
        return FAILED
    if findings.about is None:
        return NO_ENVIRONMENT if findings.events else NOT_PROVED  # else there was no time
    return NOT_PROVED if shortcomings(book, findings, suites) else PROVED


def lines(book: Book, findings: Findings, suites: Sequence[Suite], *, qemu: str, took_s: float) -> list[str]:
    """The report."""
    told = ["", "=" * 30 + " the VirtualBox lane " + "=" * 30]
    about = findings.about
    if about:
        told.append(
            f"VirtualBox {about.virtualbox}, Python {about.python}, Linux {about.kernel}, on {about.cpu}"
        )
    local = _local_sessions(findings)
    told += [
        f"in hosts by {qemu}; hosts booted: {findings.hosts}",
        f"VirtualBox machines started: {findings.machine_starts}; "
        f"SSH sessions: {len(findings.ssh_addresses)}, of them over vboxnet0: {local}",
    ]
    told += [f"news: {event}" for event in findings.events]
    for suite in suites:
        count = book.count(suite.name)
        where = ", in a plain tree" if suite.plain else ""
        told.append(f"{suite.name}{where}: " + (_counted(count) or "nothing was collected"))
    told += [f"skipped as a whole: {id_} ({why})" for id_, why in findings.left_out.items()]
    for verdict in (Verdict.SKIPPED, Verdict.NOT_RUN, Verdict.NOT_PROVED, Verdict.FAILED):
        told += [_about_one(record) for record in book if record.verdict is verdict]
    repeated = [record for record in book if record.verdict is Verdict.PASSED and len(record.attempts) > 1]
    told += [
        f"passed at the second try: {record.id} (the first time: {', '.join(record.attempts[0].marks)})"
        for record in repeated
    ]
    told += [f"!!!! NOT PROVED: {why}" for why in shortcomings(book, findings, suites)]
    minutes, seconds = divmod(round(took_s), 60)
    told.append(f"===== {_counted(book.count()) or 'no tests ran'} in {minutes}:{seconds:02d} =====")
    return told


def _local_sessions(findings: Findings) -> int:
    return sum(address.startswith(LOCAL_NETWORK) for address in findings.ssh_addresses)


def _counted(count: Counter[Verdict]) -> str:
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in Verdict if count[verdict])


def _about_one(record: Record) -> str:
    match record.verdict:
        case Verdict.NOT_RUN:
            return f"!!!! NOT RUN: {record.id}"
        case Verdict.NOT_PROVED:
            marks = "; ".join(", ".join(attempt.marks) for attempt in record.attempts)
            times = "twice" if len(record.attempts) > 1 else "once, and there was no second try"
            return f"!!!! NOT PROVED: the emulator broke it {times}: {record.id} ({marks})"
        case Verdict.SKIPPED:
            return f"skipped: {record.id} ({record.attempts[-1].text.removeprefix('[setup] ')})"
    failure = next(a for a in record.attempts if a.outcome == "failed" and not a.marks)
    return f"FAILED {record.id}\n" + "\n".join(f"    {line}" for line in failure.text.splitlines())
