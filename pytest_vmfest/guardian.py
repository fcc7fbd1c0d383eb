"""The guardian: a process that outlives its owner, and then removes what the owner's ledger names.

Whatever way the owner ends, ``kill -9`` of its whole process group included, the guardian sees it: it waits
on the owner's pidfd, in a session of its own. Its own words on the command line do not name pytest, so that a
``pkill -f pytest`` leaves it alone, unless the store's or the interpreter's path does. It holds the ledger's
lock as long as it lives, and loads drivers only when it has to act.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.ledger import Ledger
from pytest_vmfest.processes import start_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_vmfest.ledger import Owner
    from pytest_vmfest.processes import Process

_READY = b"armed"
_START_TIMEOUT_S = 30.0
_LOCK_S = 10.0

# A worker whose controller is gone gets this long to end in order.
_ORPHAN_S = 2.0
_KILL_S = 10.0
# A hypervisor's service that was killed as well may need a moment to come up again.
_PAUSES_S = (1.0, 3.0, 10.0, 30.0)


def arm(ledger: Ledger) -> Process:
    """Start the guardian of a ledger; returns when it watches. Raises `OSError` that says why it does not."""
    # The path of this process, of which an interpreter without site-packages and environment knows nothing.
    # Behind its own: what tests have put into theirs must not stand in for the standard library.
    places = [str(Path(__file__).parents[1]), *(place for place in sys.path if isinstance(place, str))]
    program = f"import sys; sys.path += {places!r}\nfrom {__name__} import main; main({str(ledger.path)!r})"
    try:
        guardian = start_helper(
            [sys.executable, "-I", "-S", "-", f"vmfest-guardian of {ledger.path}"],
            ready=_READY,
            log=str(ledger.log),
            timeout_s=_START_TIMEOUT_S,
            program=program,
        )
    except OSError:
        ledger.log.unlink(missing_ok=True)
        raise
    try:
        ledger.guarded_by(guardian)
    except BaseException:
        dismiss(guardian)
        raise
    return guardian


def dismiss(guardian: Process | None) -> None:
    """End a guardian that has nothing to guard any more. Its work is done, so it is not asked first."""
    if guardian is not None:
        guardian.kill(_KILL_S)


def main(path: str) -> None:
    """Guard the ledger at ``path``, in a process of its own."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.umask(0o077)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They may be for a whole session, this process included, which has yet to do its work. Not SIG_IGN,
        # which the hypervisor's programs would inherit.
        signal.signal(number, lambda number, frame: None)
    ledger = Ledger(Path(path))
    owner = ledger.owner()
    if owner is None or not _lock(ledger):
        raise SystemExit(f"the ledger {path} cannot be guarded")
    with ExitStack() as watch:
        owned = watch.enter_context(owner.process.opened())
        parent = watch.enter_context(owner.parent.opened()) if owner.parent else None
        os.write(1, _READY)
        _let_go_of_creator()
        if owned is not None:
            _await_end(owner, [owned] if owner.parent is None or parent is None else [owned, parent])
    _clean_up(ledger, owner)


def _lock(ledger: Ledger) -> bool:
    """Lock the ledger until this process ends. Others have the lock for a moment, to see who lives."""
    from pytest_vmfest.errors import WaitTimeoutError
    from pytest_vmfest.waiting import Deadline, wait_for

    try:
        wait_for(lambda: ledger.lock() is not None, Deadline(_LOCK_S), what="its lock", interval_s=0.01)
    except WaitTimeoutError:
        return False
    return True


def _let_go_of_creator() -> None:
    with Path(os.devnull).open("r+b") as null:
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)


def _await_end(owner: Owner, pidfds: Sequence[int]) -> None:
    """Return when the owner has ended. One whose parent has ended is made to."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    poll.poll()
    if owner.process.alive:
        owner.process.terminate()
        if not owner.process.wait(_ORPHAN_S):
            owner.process.kill(_KILL_S)


def _clean_up(ledger: Ledger, owner: Owner) -> None:
    from pytest_vmfest.reaper import driver_of, reap

    for pause_s in (*_PAUSES_S, None):
        try:
            driver = driver_of(owner)
            try:
                reap(ledger, driver, owner)
            finally:
                driver.close()
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
            if pause_s is not None:
                time.sleep(pause_s)
        else:
            ledger.log.unlink(missing_ok=True)
            return
