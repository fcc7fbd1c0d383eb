"""The templates of a store: one frozen machine for each image, hardware and driver that was used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_vmfest.drivers import FREEZING, load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.errors import NotSupportedError, WaitTimeoutError
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import MachineSpec

# Counted up when what is done before a freeze, or how it is kept, changes.
_FORMAT = 1
_FACTS = "template.json"
_POLL_S = 0.2
# What is to be left for everybody else when a template is made, its disk included.
_SPARE_MIB = 512

MAX_AGE_S = 14 * 24 * 3600
"""Templates that nobody has used for so long are removed."""
MAX_BYTES = 16 << 30
"""Of templates that take more than this on disk, those that were used last are kept."""


@dataclass(frozen=True)
class Facts:
    """What is known of a template; the file with this is written last, so what has none is not whole."""

    image: str
    driver: str
    memory_mib: int
    cpus: int
    macs: tuple[str, ...]
    """The addresses that its private NICs have, as resumed guests see them at first."""
    took_s: float
    """How long it took to make, from the first boot on."""
    size: dict[str, int]
    """The size of each of its files."""


class Template:
    """A frozen machine in a folder of the store, or the place for one that is to be made."""

    def __init__(self, folder: Path, lock: Path) -> None:
        """``lock`` is held by who makes or removes it."""
        self.folder = folder
        self._lock = FileLock(lock)

    @property
    def name(self) -> str:
        """Image, and a digest of all that it depends on: ``tiny-1f2e3d4c5b6a``."""
        return self.folder.name

    def facts(self) -> Facts | None:
        """What is known of it; None if it is not there, or not whole."""
        try:
            said = json.loads((self.folder / _FACTS).read_bytes())
            known = {field.name: said[field.name] for field in fields(Facts)}
            facts = Facts(**{**known, "macs": tuple(known["macs"])})
            sizes = {name: (self.folder / name).stat().st_size for name in facts.size}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return facts if sizes == facts.size else None

    def used(self) -> None:
        """Note that it is used now."""
        with suppress(OSError):
            os.utime(self.folder / _FACTS)

    @property
    def last_used(self) -> float:
        """In seconds since the epoch; when it was begun, if it is not whole."""
        for path in (self.folder / _FACTS, self.folder):
            with suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    @property
    def bytes_on_disk(self) -> int:
        """What its files take on disk."""
        total = 0
        for path in self.folder.glob("*"):
            with suppress(OSError):
                total += 512 * path.stat().st_blocks
        return total

    @contextmanager
    def turn(self, patience_s: float, check: Callable[[], None]) -> Iterator[None]:
        """Have it to oneself, to make it; ``check`` is called while others have it, and may raise.

        Raises `WaitTimeoutError`.
        """
        with writing_to(self._lock_folder):
            make_private(self._lock_folder)
        give_up = time.monotonic() + patience_s
        while True:
            check()
            try:
                self._lock.acquire(timeout=_POLL_S)
                break
            except Timeout:
                if time.monotonic() > give_up:
                    raise WaitTimeoutError(
                        f"another process has been making the template {self.name} for {patience_s:g} s"
                    ) from None
        try:
            yield
        finally:
            self._lock.release()

    def complete(self, spec: MachineSpec, driver: Driver, took_s: float) -> Facts:
        """Note that it is whole now."""
        files = [path for path in self.folder.iterdir() if path.name != _FACTS]
        facts = Facts(
            image=spec.image.name,
            driver=driver.name,
            memory_mib=spec.hardware.memory_mib,
            cpus=spec.hardware.cpus,
            macs=tuple(nic.mac for nic in spec.nics),
            took_s=took_s,
            size={path.name: path.stat().st_size for path in files},
        )
        beside = self.folder / f"{_FACTS}.new"
        with writing_to(self.folder):
            beside.write_text(json.dumps(asdict(facts), indent=1))
            beside.replace(self.folder / _FACTS)
        return facts

    def discard_unless_busy(self) -> bool:
        """Remove it, unless somebody makes it just now; whether it was removed."""
        try:
            self._lock.acquire(timeout=0)
        except (Timeout, OSError):
            return False
        try:
            self.discard()
        finally:
            self._lock.release()
        return not self.folder.exists()

    def discard(self) -> None:
        """Remove it. Machines that have resumed from it go on, until they are powered off."""
        with suppress(OSError):
            (self.folder / _FACTS).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _lock_folder(self) -> Path:
        return self.folder.parents[1] / "locks"


class Templates:
    """Finds the template for a machine, by all that it depends on."""

    def __init__(self, driver: Driver, news: Progress) -> None:
        """``news`` is told, once each, why machines have none."""
        self._driver = driver
        self._news = news
        self._told: set[str] = set()
        self._hopeless: set[str] = set()
        self._lock = threading.Lock()

    def of(self, spec: MachineSpec) -> Template | None:
        """The template for machines of this spec, whether it is there yet or not; None: they boot."""
        if not self._driver.outlives_us:
            return None
        try:
            key = self._driver.freezing_key(spec)
        except NotSupportedError as error:
            self.do_without(error.message)
            return None
        digest = hashlib.sha256(f"{_FORMAT} {self._driver.name} {key}".encode()).hexdigest()[:12]
        template = template_at(self._driver.settings.home, f"{spec.image.name}-{digest}")
        return None if template.name in self._hopeless else template

    def fits(self, spec: MachineSpec) -> bool:
        """Whether the store has room for another template; if not, that is told."""
        home = self._driver.settings.home
        free_mib, wanted_mib = shutil.disk_usage(home).free >> 20, spec.hardware.memory_mib + _SPARE_MIB
        if free_mib < wanted_mib:
            self.do_without(f"a template may take {wanted_mib} MiB, and {free_mib} MiB are free in {home}")
        return free_mib >= wanted_mib

    def cannot_make(self, template: Template, reason: str) -> None:
        """From now on machines boot that would have this template: trying again takes a boot each time."""
        self._hopeless.add(template.name)
        self.do_without(reason)

    def do_without(self, reason: str) -> None:
        """Tell, unless it was told before, why machines boot instead of resuming."""
        with self._lock:
            if reason in self._told:
                return
            self._told.add(reason)
        self._news(Step("templates", f"machines boot: {reason}"))


def templates_in(home: Path) -> list[Template]:
    """All templates of the store, also those that are not whole, the last used first."""
    names = [path.name for path in (home / "templates").glob("*") if path.is_dir()]
    return sorted((template_at(home, name) for name in names), key=lambda one: -one.last_used)


def tidy(home: Path, in_use: Container[str]) -> list[str]:
    """Remove templates that are not whole, too old, or too many, but none ``in_use``; the names of those.

    See `MAX_AGE_S` and `MAX_BYTES`.
    """
    removed, kept_bytes = [], 0
    for template in templates_in(home):
        size = template.bytes_on_disk
        old = time.time() - template.last_used > MAX_AGE_S
        unwanted = template.facts() is None or old or kept_bytes + size > MAX_BYTES
        if unwanted and template.name not in in_use and template.discard_unless_busy():
            removed.append(template.name)
        else:
            kept_bytes += size
    return removed


def in_use(driver: Driver) -> dict[str, list[str]]:
    """By template: the machines that have gone on from it."""
    users: dict[str, list[str]] = {}
    for info in driver.machines():
        if info.template:
            users.setdefault(info.template, []).append(info.name)
    return users


def users_in(home: Path) -> dict[str, list[str]]:
    """By template: the machines of the store that have gone on from it, whichever driver is configured."""
    users: dict[str, list[str]] = {}
    for name in FREEZING:
        driver = load_driver(name, DriverSettings(home))
        try:
            users |= in_use(driver)
        finally:
            driver.close()
    return users


def template_at(home: Path, name: str) -> Template:
    """The template of that name in the store ``home``."""
    return Template(home / "templates" / name, home / "locks" / f"template-{name}.lock")
