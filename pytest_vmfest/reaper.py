"""Removing what a ledger names: for its owner's end, for its guardian, and for whoever comes later."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pytest_vmfest.drivers import load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.errors import all_or_raise
from pytest_vmfest.ledger import Kind, Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_vmfest.drivers.base import Driver, MachineInfo
    from pytest_vmfest.ledger import Owner


@dataclass(frozen=True)
class Reaped:
    """What became of a ledger whose owner is dead.

    ``removed`` are the machines that are gone now, ``kept`` those that may stay and until when, in seconds
    since the epoch; ``error`` says what could not be removed.
    """

    removed: tuple[str, ...] = ()
    kept: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def reap(ledger: Ledger, driver: Driver, owner: Owner) -> Reaped:
    """Remove what the ledger names and still exists, but for machines that are kept and not due.

    Nothing else is touched: a machine that has a name in the ledger but not its owner's tags is somebody
    else's. Without anything left, the ledger is removed. Raises `DestroyError` that tells what is there.
    """
    entries = ledger.entries()
    infos = {info.name: info for info in driver.machines()} if entries else {}
    now = time.time()
    kept = {name: until for name, until in entries.kept.items() if name in infos and until > now}
    doomed = [name for name in entries.machines if name not in kept and _is_of(owner, infos.get(name))]
    used = {infos[name].tags.get("group") for name in kept}
    networks = [name for name in entries.networks if name not in used]
    all_or_raise(
        *(partial(driver.destroy, name) for name in doomed),
        *(partial(driver.remove_network, name) for name in networks),
    )
    if not kept:
        ledger.remove()  # for which a full disk has room
        return Reaped(tuple(name for name in doomed if name in infos))
    for name in entries.machines:
        if name not in kept:
            ledger.cross_out(Kind.MACHINE, name)
    for name in networks:
        ledger.cross_out(Kind.NETWORK, name)
    return Reaped(tuple(name for name in doomed if name in infos), kept)


def _is_of(owner: Owner, info: MachineInfo | None) -> bool:
    # One that is half-made shows neither image nor tags; of one that is not listed, files may be left.
    return info is None or not info.image or owner.tags.items() <= info.tags.items()


def driver_of(owner: Owner) -> Driver:
    """The driver by which the owner's machines were made."""
    return load_driver(owner.driver, DriverSettings.from_json(owner.settings))


def reap_dead(home: Path) -> list[Reaped]:
    """Reap all ledgers of a store whose owners are dead, however they died; what is kept stays until due.

    Ledgers of living owners, and those that another process is reaping now, are left alone.
    """
    found = [_reaped(ledger) for ledger in Ledger.all(home)]
    return [reaped for reaped in found if reaped is not None]


def _reaped(ledger: Ledger) -> Reaped | None:
    """What became of a ledger, if its owner is dead."""
    try:
        lock = ledger.lock()
        if lock is None:
            return None
        try:
            return _reaped_if_dead(ledger)
        finally:
            Ledger.unlock(lock)
    except Exception as error:  # whatever is wrong with it must not be in the way of the others
        return Reaped(error=f"what {ledger.path} names cannot be removed: {error}")


def _reaped_if_dead(ledger: Ledger) -> Reaped | None:
    owner = ledger.owner()
    if owner is None:
        if ledger.entries():
            return Reaped(error=f"{ledger.path} does not say whose it is; what it names is left alone")
        ledger.remove()  # nothing can have been made
        return None
    if owner.process.alive and not ledger.is_settled:
        return None
    driver = driver_of(owner)
    try:
        return reap(ledger, driver, owner)
    finally:
        driver.close()
