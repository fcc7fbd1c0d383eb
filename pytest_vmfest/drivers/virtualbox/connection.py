"""The line to VirtualBox: vboxapi and pyvbox, loaded when first needed, with clear words when that fails.

XPCOM wants every thread to announce itself; objects may then be used from any thread.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.metadata
import io
import os
import re
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.drivers.virtualbox.versions import api_for
from pytest_vmfest.errors import DriverError, DriverUnavailableError, WaitTimeoutError
from pytest_vmfest.folders import make_private, writing_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from virtualbox.library import IProgress, ISession, IVirtualBox

    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.waiting import Deadline

_CONFIGURATION = Path("/etc/vbox/vbox.cfg")
_USUAL_PLACES = (Path("/usr/lib/virtualbox"), Path("/opt/VirtualBox"))
# Creating or removing one machine takes seconds, also when VirtualBox's service is slow.
_REGISTRY_TIMEOUT_S = 600.0
# Between two looks at an operation, so that interrupts are heeded.
_SLICE_S = 0.5
# The bindings import one another at every call, and pyvbox takes only what its own classes made.
_BINDINGS = re.compile(r"(vboxapi|xpcom|VBoxPython\w*|virtualbox)(\.|$)")
_held_modules: dict[str, ModuleType] = {}


@dataclass(frozen=True)
class Installation:
    """Where VirtualBox is installed, and the version that its own files tell."""

    folder: Path
    version: str

    @property
    def sdk_command(self) -> str:
        """What to type to get the Python side of this very version."""
        return f"pip install 'vbox-sdk=={self.version}'" if self.version else "pip install vbox-sdk"


def find_installation() -> Installation:
    """VirtualBox on this host; `DriverUnavailableError` says how to get it."""
    for folder in _candidates():
        if (folder / "VBoxSVC").exists():
            return Installation(folder, _version(folder))
    raise DriverUnavailableError(
        "VirtualBox is not installed: there is no VBoxSVC in "
        + ", ".join(str(place) for place in _USUAL_PLACES),
        hint="install it from virtualbox.org or your distribution, or set VBOX_INSTALL_PATH to its folder",
    )


def _candidates() -> list[Path]:
    said = [os.environ.get(name) for name in ("VBOX_INSTALL_PATH", "VBOX_PROGRAM_PATH")]
    folders = [Path(folder) for folder in said if folder]
    with contextlib.suppress(OSError):
        if found := re.search(r"^INSTALL_DIR='?([^'\n]+)", _CONFIGURATION.read_text(), re.MULTILINE):
            folders.append(Path(found[1]))
    return [*folders, *_USUAL_PLACES]


def _version(folder: Path) -> str:
    """The version that VirtualBox's own command line tells; it starts no service for that."""
    import subprocess

    try:
        done = subprocess.run(
            [folder / "VBoxManage", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Before the version it may complain about the kernel module.
    found = re.search(r"^(\d+\.\d+\.\d+)", done.stdout, re.MULTILINE)
    return found[1] if found else ""


class Connection:
    """VirtualBox's objects, for any thread.

    ``api`` holds what differs between versions, ``constants`` are the running version's own enumerations.
    """

    def __init__(self, manager: Any, lock_folder: Path | None = None) -> None:
        """Take a manager of vboxapi, or one that does the same.

        ``lock_folder`` is where the registry's lock is, if VirtualBox's own folder is on another host.
        """
        self.is_local = lock_folder is None
        self._manager = manager
        self._thread = threading.local()
        self._vbox: IVirtualBox | None = None
        self.constants = manager.constants
        self.version = str(self.vbox.version)
        self.api = api_for(str(self.vbox._i.APIVersion), self.version)
        self._registry_lock = FileLock((lock_folder or Path(str(self.vbox.home_folder))) / "vmfest.lock")

    @property
    def vbox(self) -> IVirtualBox:
        """VirtualBox itself, fetched anew where the line to its service was lost.

        Raises `DriverUnavailableError` if it cannot be had again: on this host, a process whose VBoxSVC has
        died finds no other.
        """
        self._announce()
        vbox = self._vbox
        if vbox is not None:
            try:
                vbox._i.revision  # noqa: B018 - asks the service, which may be gone
            except Exception as error:
                if not trouble.is_dead(error):
                    raise
                vbox = None
        if vbox is None:
            from virtualbox.library import IVirtualBox

            raw = self._manager.getVirtualBox()
            if raw is None:
                raise DriverUnavailableError(
                    "VirtualBox's service (VBoxSVC) has died, and this process cannot reach it any more",
                    hint=trouble.SERVICE_GONE,
                )
            vbox = self._vbox = IVirtualBox(raw)
            _held_modules.update(
                (name, module) for name, module in list(sys.modules.items()) if _BINDINGS.match(name)
            )
        return vbox

    def session(self) -> ISession:
        """A new session, with which a machine can be locked."""
        from virtualbox.library import ISession

        self._announce()
        return ISession(self._manager.getSessionObject(None))

    @contextlib.contextmanager
    def registry_lock(self) -> Iterator[None]:
        """Have VirtualBox's registry to oneself, among all threads and processes of this user that ask.

        Raises `DriverError` if another one does not let it go.
        """
        try:
            self._registry_lock.acquire(timeout=_REGISTRY_TIMEOUT_S)
        except Timeout:
            raise DriverError(
                f"another process has locked VirtualBox's registry for {_REGISTRY_TIMEOUT_S:g} s",
                hint=f"it holds the file {self._registry_lock.lock_file}",
            ) from None
        try:
            yield
        finally:
            self._registry_lock.release()

    def wait(self, progress: IProgress, deadline: Deadline, doing: str) -> None:
        """Wait for the end of an operation; raises what became of it, or `WaitTimeoutError`."""
        with trouble.translated(doing):
            # Waited for over there: asking again and again would keep VirtualBox's service busy.
            while not progress.completed:
                if deadline.expired:
                    if progress.cancelable:
                        progress.cancel()
                    raise WaitTimeoutError(f"{doing}: not within {deadline.timeout_s:g} s")
                progress.wait_for_completion(int(min(deadline.remaining_s, _SLICE_S) * 1000) + 1)
            code = progress.result_code & 0xFFFFFFFF
            if code:
                info = progress.error_info
                texts = []
                while not trouble.is_null(info):
                    texts.append(str(info.text))
                    info = info.next_p
                raise trouble.told(doing, "\n".join(dict.fromkeys(texts)) or f"result code 0x{code:08x}")

    def _announce(self) -> None:
        _recall_modules()
        if not getattr(self._thread, "announced", False):
            self._manager.initPerThread()
            self._thread.announced = True


def connect(settings: DriverSettings) -> Connection:
    """Connect to VirtualBox, on this host or behind ``settings.url``.

    Raises `DriverUnavailableError` (VirtualBox, its SDK or its service missing, or of another version) and
    `ConfigurationError` (what is said of the web service is wrong).
    """
    if settings.url is not None:
        return _connect_remotely(settings, settings.url)
    manager = _local_manager(find_installation())
    with trouble.translated("VirtualBox's service (VBoxSVC) cannot be used"):
        return Connection(manager)


def _connect_remotely(settings: DriverSettings, url: str) -> Connection:
    from pytest_vmfest.drivers.virtualbox.soap import SoapManager

    folder = settings.home / "virtualbox"
    with writing_to(folder):
        make_private(folder)
    manager = SoapManager(url, settings.user, settings.password)
    with trouble.translated(f"VirtualBox behind {manager.url} cannot be used"):
        return Connection(manager, folder)


@functools.cache
def _local_manager(installation: Installation) -> Any:
    """The manager of vboxapi, of which a process can have one."""
    folder = str(installation.folder)
    for name, value in {
        "VBOX_INSTALL_PATH": folder,
        "VBOX_PROGRAM_PATH": folder,
        "VBOX_SDK_PATH": f"{folder}/sdk",
    }.items():
        os.environ.setdefault(name, value)
    check_sdk(installation)
    try:
        vboxapi = importlib.import_module("vboxapi")
    except ImportError as error:
        raise DriverUnavailableError(
            f"VirtualBox {installation.version} is installed, but its Python side (vboxapi) is not: {error}",
            hint=f"install it with: {installation.sdk_command}",
        ) from error
    said = io.StringIO()
    try:
        # Instead of raising, it prints what went wrong. And where warnings are errors, its bindings crash the
        # interpreter: they make a type that Python warns of, and do not ask whether they got it.
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(action="ignore"),
        ):
            manager = vboxapi.VirtualBoxManager(None, None)
            manager.getVirtualBox()
    except Exception as error:
        raise _unusable(installation, error, said.getvalue()) from error
    # Left to the interpreter's end, it would complain that nothing can be imported any more.
    atexit.register(_leave, manager)
    return manager


def _leave(manager: Any) -> None:
    _recall_modules()
    manager.deinit()


def _recall_modules() -> None:
    """Have the bindings imported again: pytester, for one, takes back what its test imported."""
    for name, module in _held_modules.items():
        sys.modules.setdefault(name, module)


def check_sdk(installation: Installation) -> None:
    """Refuse an SDK of another version: the numbers of its enumerations may differ from VirtualBox's.

    Raises `DriverUnavailableError`.
    """
    try:
        version = importlib.metadata.version("vbox-sdk")
    except importlib.metadata.PackageNotFoundError:
        return  # it came with VirtualBox's own installer, or there is none
    if installation.version and version.split(".")[:2] != installation.version.split(".")[:2]:
        raise DriverUnavailableError(
            f"VirtualBox is {installation.version}, but its Python side (vbox-sdk) is {version}",
            hint=f"install the one that fits: {installation.sdk_command}",
        )


def _unusable(installation: Installation, error: Exception, said: str) -> DriverUnavailableError:
    # Its loader catches what the bindings say, and raises an error of no particular kind.
    if isinstance(error, ImportError) or "Cannot find VBoxPython module" in str(error):
        return DriverUnavailableError(
            f"VirtualBox {installation.version} has no bindings for this Python: {error}",
            hint="use the Python that VirtualBox was built for (Debian: the system's python3 and a virtual "
            f"environment made with it); its programs are in {installation.folder}",
        )
    text = trouble.text_of(error)
    reason = next((line for line in said.splitlines() if line.startswith("init exception:")), "")
    return DriverUnavailableError(
        f"VirtualBox {installation.version}: its service (VBoxSVC) does not answer: {reason or text}",
        hint=f"try it by hand: {installation.folder}/VBoxManage list systemproperties",
    )
