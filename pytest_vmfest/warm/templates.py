"""The templates of a store: one frozen machine for each image, hardware and driver that was used.

Each is a folder that is written once. One that is given up only loses the file that says that it is whole, as
machines may stand on its disk; `tidy` removes the folder when nobody does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pytest_vmfest.drivers import STANDING_ON_TEMPLATES, load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.errors import NotSupportedError
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import MachineSpec

MAX_AGE_S = 14 * 24 * 3600
"""Templates that nobody has used for so long are removed."""
MAX_BYTES = 16 << 30
"""Of templates that take more than this on disk, those that were used last are kept."""
FAILED_S = 24 * 3600
"""What could not be frozen is not tried again for so long."""

# Counted up when what is done before a freeze, or how it is kept, changes.
_FORMAT = 3
_FACTS = "template.json"
_LOCK = "lock"
_FAILED = ".failed"
_POLL_S = 0.2
# What is to be left for everybody else when a template is made, with what its guest writes to its disk.
_SPARE_MIB = 512
# A template that cannot be resumed is made anew so often.
_RESUME_FAILURES = 2


@dataclass(frozen=True)
class Facts:
    """What is known of a template; the file with this is written last, so what has none is not whole."""

    image: str
    driver: str
    memory_mib: int
    cpus: int
    macs: tuple[str, ...]
    """The addresses that its private NICs have, as resumed guests see them at first."""
    disk: str
    """The image's disk, on which its own stands."""
    disk_identity: str
    """By what that is known again."""
    took_s: float
    """How long it took to make, from the first boot on."""
    size: dict[str, int]
    """The size of each of its files."""


class Template:
    """A frozen machine in a folder of its own: whole, being made, or given up."""

    def __init__(self, folder: Path) -> None:
        """Know the folder; it need not exist."""
        self.folder = folder

    @property
    def name(self) -> str:
        """Its image, a digest of what it depends on, a number of its own: ``tiny-1f2e3d4c5b6a-7a8b9c``."""
        return self.folder.name

    def facts(self) -> Facts | None:
        """What is known of it; None if it is not whole."""
        try:
            said = json.loads((self.folder / _FACTS).read_bytes())
            known = {field.name: said[field.name] for field in fields(Facts)}
            facts = Facts(**{**known, "macs": tuple(known["macs"])})
            sizes = {name: (self.folder / name).stat().st_size for name in facts.size}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return facts if sizes == facts.size else None

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
    def held(self) -> Iterator[bool]:
        """Nobody removes it meanwhile; False if that has happened already, or happens just now."""
        with self._locked(fcntl.LOCK_SH) as is_ours:
            with suppress(OSError):
                os.utime(self.folder / _FACTS)
            yield is_ours

    def complete(self, spec: MachineSpec, driver: Driver, took_s: float) -> Facts:
        """Note that it is whole now, and will be if the host's power fails; `StoreError`."""
        with writing_to(self.folder):
            files = [path for path in self.folder.iterdir() if path.name != _LOCK]
            for path in files:
                _write_out(path)
            facts = Facts(
                image=spec.image.name,
                driver=driver.name,
                memory_mib=spec.hardware.memory_mib,
                cpus=spec.hardware.cpus,
                macs=tuple(nic.mac for nic in spec.nics),
                disk=str(spec.image.disk.absolute()),
                disk_identity=_identity(spec.image.disk),
                took_s=took_s,
                size={path.name: path.stat().st_size for path in files},
            )
            beside = self.folder / f"{_FACTS}.new"
            beside.write_text(json.dumps(asdict(facts), indent=1))
            _write_out(beside)
            beside.replace(self.folder / _FACTS)
        return facts

    def give_up(self) -> None:
        """From now on nobody takes it for whole."""
        with suppress(OSError):
            (self.folder / _FACTS).unlink()

    def remove(self) -> bool:
        """Remove it, unless it is held, or machines have gone on from it; whether it is gone."""
        with self._locked(fcntl.LOCK_EX) as is_ours:
            # Asked only now: who was about to go on from it has done so, and others cannot begin.
            if is_ours and self.name not in users_in(self.folder.parents[1]):
                self.give_up()
                shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Have the lock in its folder at once, or not at all."""
        path = self.folder / _LOCK
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            yield False
            return
        try:
            try:
                fcntl.flock(handle, how | fcntl.LOCK_NB)
                # It may have been removed between the two.
                is_ours = path.exists() and path.samefile(f"/proc/self/fd/{handle}")
            except OSError:
                is_ours = False
            yield is_ours
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may still have it open
            os.close(handle)


@dataclass(frozen=True)
class Failure:
    """A kind of machine that could not be frozen or resumed, and boots therefore."""

    kind: str
    reason: str
    since: float
    """In seconds since the epoch."""

    @property
    def image(self) -> str:
        """The image's name."""
        return self.kind.rpartition("-")[0]


class Place:
    """Where templates of one kind of machine are, of which the newest that is whole counts."""

    def __init__(self, home: Path, kind: str) -> None:
        """``kind`` is the image's name and a digest of all that its templates depend on."""
        self.kind = kind
        self._folder = home / "templates"
        self._lock_file = home / "locks" / f"template-{kind}.lock"
        self._lock = FileLock(self._lock_file)

    def template(self) -> tuple[Template, Facts] | None:
        """The template, if there is one."""
        found = [Template(path) for path in self._folder.glob(f"{self.kind}-*") if path.is_dir()]
        for template in sorted(found, key=lambda one: -one.last_used):
            if facts := template.facts():
                return template, facts
        return None

    @contextmanager
    def turn(self, patience_s: float, check: Callable[[], None]) -> Iterator[bool]:
        """Be the one who makes it, or be told False when patience is over.

        ``check`` is called while others make it, and may raise. Raises `StoreError`.
        """
        with writing_to(self._lock_file.parent):
            make_private(self._lock_file.parent)
        give_up = time.monotonic() + patience_s
        while True:
            check()
            try:
                self._lock.acquire(timeout=_POLL_S)
                break
            except Timeout:
                if time.monotonic() > give_up:
                    yield False
                    return
            except OSError:
                with writing_to(self._lock_file):
                    raise
        try:
            yield True
        finally:
            self._lock.release()

    @contextmanager
    def begun(self) -> Iterator[Template]:
        """A new folder for a template that is to be made, which is held; `StoreError`."""
        while True:
            template = Template(self._folder / f"{self.kind}-{secrets.token_hex(3)}")
            with writing_to(template.folder):
                make_private(template.folder)
            try:
                with template.held() as is_ours:
                    if is_ours:  # nobody took it for one that was left
                        yield template
                        return
            finally:
                if template.facts() is None:
                    template.remove()

    def note_failure(self, reason: str) -> None:
        """Remember, also for other processes, why there is no template."""
        with suppress(OSError):
            make_private(self._folder)
            self._failure_file.write_text(reason)

    def failure(self) -> str:
        """Why there is none, if it was tried not long ago; else empty."""
        failure = _failure_in(self._failure_file)
        return failure.reason if failure else ""

    @property
    def _failure_file(self) -> Path:
        return self._folder / f"{self.kind}{_FAILED}"


class Templates:
    """Finds the place of a machine's template, by all that it depends on; tells why machines have none."""

    def __init__(self, driver: Driver, news: Progress) -> None:
        """``news`` is told each reason once."""
        self.home = driver.settings.home
        self._driver = driver
        self._news = news
        self._told: set[str] = set()
        self._hopeless: set[str] = set()
        self._failures: dict[str, int] = {}
        self._lock = threading.Lock()

    def place_of(self, spec: MachineSpec) -> Place | None:
        """Where the template for machines of this spec is, or is to be made; None: they boot."""
        if not self._driver.freezes or spec.permanent:
            return None
        try:
            key = self._driver.freezing_key(spec)
        except (NotSupportedError, OSError) as error:
            self.tell(str(error).partition("\n")[0])
            return None
        digest = hashlib.sha256(f"{_FORMAT} {self._driver.name} {key}".encode()).hexdigest()[:12]
        place = Place(self.home, f"{spec.image.name}-{digest}")
        if place.kind in self._hopeless:
            return None
        if reason := place.failure():
            self.tell(f"{reason} (found out before; vmfest template remove --all has it tried again)")
            return None
        return place

    def fits(self, spec: MachineSpec) -> bool:
        """Whether the store has room for another template; if not, that is told."""
        free_mib = shutil.disk_usage(self.home).free >> 20
        wanted_mib = self._driver.frozen_mib(spec) + _SPARE_MIB
        if free_mib < wanted_mib:
            wanted = f"a template may take {wanted_mib} MiB"
            # What is free changes all the time.
            self.tell(f"{wanted}, and {free_mib} MiB are free in {self.home}", about=wanted)
        return free_mib >= wanted_mib

    def cannot_make(self, place: Place, reason: str, *, ever: bool) -> None:
        """From now on machines of that kind boot: to try again would take a boot each time.

        ``ever``: it will be the same for other processes, too.
        """
        self._hopeless.add(place.kind)
        if ever:
            place.note_failure(reason)
        self.tell(reason)

    def cannot_resume(self, place: Place, reason: str, *, ever: bool) -> None:
        """A resume has failed; when that happens again before one succeeds, machines of that kind boot.

        ``ever``: it will be the same for other processes, too.
        """
        with self._lock:
            self._failures[place.kind] = self._failures.get(place.kind, 0) + 1
            again = self._failures[place.kind] >= _RESUME_FAILURES
        if again:
            self.cannot_make(place, reason, ever=ever)
        else:
            self.tell(reason)

    def resumed(self, place: Place) -> None:
        """A resume has succeeded."""
        with self._lock:
            self._failures.pop(place.kind, None)

    def do_without(self, place: Place) -> None:
        """Machines of that kind boot in this process, which need not be told."""
        self._hopeless.add(place.kind)

    def tell(self, reason: str, *, about: str = "") -> None:
        """Tell, unless it was told before, why machines boot instead of resuming.

        ``about`` is what reasons have in common of which one is enough; without, that is the reason itself.
        """
        with self._lock:
            if (about or reason) in self._told:
                return
            self._told.add(about or reason)
        self._news(Step("templates", f"machines boot: {reason}"))


def templates_in(home: Path) -> list[Template]:
    """All templates of the store, also those that are not whole, the last used first."""
    found = [Template(path) for path in (home / "templates").glob("*") if path.is_dir()]
    return sorted(found, key=lambda template: -template.last_used)


def tidy(home: Path) -> list[str]:
    """Remove templates that are not whole, too old, or too many, but none in use; the names of those removed.

    Also those whose image is gone, or was replaced. See `MAX_AGE_S` and `MAX_BYTES`. Old failures are
    forgotten.
    """
    forget_failures(home, older_than_s=FAILED_S)
    removed, kept_bytes = [], 0
    for template in templates_in(home):
        size = template.bytes_on_disk
        old = time.time() - template.last_used > MAX_AGE_S
        facts = template.facts()
        stands = facts is not None and _identity(Path(facts.disk)) == facts.disk_identity
        unwanted = not stands or old or kept_bytes + size > MAX_BYTES
        if unwanted and template.remove():
            removed.append(template.name)
        else:
            kept_bytes += size
    return removed


def failures_in(home: Path) -> list[Failure]:
    """What machines of the store boot for at present, the latest first."""
    found = [_failure_in(path) for path in (home / "templates").glob(f"*{_FAILED}")]
    return sorted((failure for failure in found if failure), key=lambda failure: -failure.since)


def forget_failures(home: Path, *, older_than_s: float = -1) -> None:
    """Have all tried again that could not be frozen."""
    for path in (home / "templates").glob(f"*{_FAILED}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_s:
                path.unlink()


def _failure_in(path: Path) -> Failure | None:
    """What is noted in a file, if that still counts."""
    with suppress(OSError):
        since = path.stat().st_mtime
        if time.time() - since < FAILED_S:
            return Failure(path.name.removesuffix(_FAILED), path.read_text(errors="replace"), since)
    return None


def users_in(home: Path) -> dict[str, list[str]]:
    """By template: the machines of the store that need its files, whichever driver is configured."""
    users: dict[str, list[str]] = {}
    for name in STANDING_ON_TEMPLATES:
        driver = load_driver(name, DriverSettings(home))
        try:
            for info in driver.machines():
                if info.template:
                    users.setdefault(info.template, []).append(info.name)
        finally:
            driver.close()
    return users


def _identity(path: Path) -> str:
    """Something else once the file is replaced; empty if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def _write_out(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
