"""VirtualBox on another host, through its web service (``vboxwebsrv``).

`SoapManager` does what vboxapi's ``VirtualBoxManager`` does for `Connection`, and its objects behave as those
of XPCOM: attributes and methods by VirtualBox's names, enumerations as numbers, null as None, several results
as a tuple, errors with ``errno`` and ``msg``. vboxapi itself needs a module for this that is shipped nowhere.

All that the API has can be done from afar. Files are another thing: VirtualBox opens base disks, console
files and settings where it runs itself, so the store's folder must be on a file system that both hosts see
under the same path. Guests' addresses in the network modes local and nat are those that VirtualBox's own host
has for them; from another host, guests are reached in the mode bridged.

The web service forgets objects only when told, and a whole session after some minutes without a call (its
option ``--timeout``, 300 s). Objects that nobody holds any more are given back; a forgotten session looks
like a restarted VBoxSVC: `Connection.vbox` gets a new one.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import logging
import re
import socket
import threading
import weakref
from collections import Counter, deque
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_vmfest.drivers.virtualbox.wsdl import Operation, enumerations_of
from pytest_vmfest.errors import ConfigurationError, DriverUnavailableError

if TYPE_CHECKING:
    from pytest_vmfest.drivers.virtualbox.wsdl import Enumerations, Part

_BINDING = "{http://www.virtualbox.org/}vboxBinding"
_LOAD_TIMEOUT_S = 20
# No call of the API takes that long; what takes longer gives a progress object.
_CALL_TIMEOUT_S = 300
# Objects that nobody holds any more are given back in bunches: each costs a call.
_BUNCH = 64

# Result codes that `trouble.is_dead` knows.
_UNREACHABLE = 0x800706BA
_FORGOTTEN = 0x80010108

# Bytes, which the web service sends as base64.
_BYTES = frozenset(
    {
        "IDisplay_takeScreenShotToArray",
        "IMachine_getIcon",
        "IMachine_readLog",
        "IMachine_readSavedScreenshotToArray",
        "IMachine_readSavedThumbnailToArray",
    }
)
_NO_FILE = re.compile(r"VERR_(FILE|PATH)_NOT_FOUND|VERR_ACCESS_DENIED|Could not find file for the medium")


class SoapError(Exception):
    """An error of VirtualBox, with the attributes that ``xpcom.Exception`` has."""

    def __init__(self, errno: int, msg: str) -> None:
        """``errno`` is the result code, without sign."""
        super().__init__(errno, msg)
        self.errno = errno
        self.msg = msg

    def __str__(self) -> str:
        """The code and VirtualBox's text, as XPCOM writes them."""
        return f"0x{self.errno:08x} ({self.msg})"


class SoapManager:
    """The session with a web service, for any thread; calls are made one after the other."""

    def __init__(self, url: str, user: str, password: str) -> None:
        """Read the service's description and log on.

        Raises `ConfigurationError` (no such URL, wrong password) and `DriverUnavailableError` (zeep missing,
        nothing there, no VirtualBox).
        """
        self.url = checked_url(url)
        self._user, self._password = user, password
        del password  # tracebacks may show the locals
        self._lock = threading.RLock()
        self._living: Counter[str] = Counter()
        self._dropped: deque[str] = deque()
        self._interfaces: dict[tuple[str, str], str] = {}
        self._operations: dict[str, Operation | None] = {}
        self._root = ""
        self._farewell: weakref.finalize[[Any, str], SoapManager] | None = None
        self._client, self.constants = _described(self.url)
        self._service = self._client.create_service(_BINDING, self.url)
        self._log_on()

    def __repr__(self) -> str:
        """Where it is; never the password."""
        return f"<SoapManager {self.url}>"

    # --- what `Connection` asks of a manager --------------------------------------------------------

    def getVirtualBox(self) -> SoapObject:  # noqa: N802 - vboxapi's name
        """VirtualBox itself; logs on anew if the service has forgotten the session."""
        with self._lock:
            try:
                self.call("IVirtualBox_getRevision", self._root)
            except SoapError as error:
                if error.errno not in (_UNREACHABLE, _FORGOTTEN):
                    raise
                self._log_on()
            return SoapObject(self, "IVirtualBox", self._root)

    def getSessionObject(self, vbox: object = None) -> SoapObject:  # noqa: N802 - vboxapi's name
        """A new ``ISession``."""
        session: SoapObject = self.call("IWebsessionManager_getSessionObject", None, self._root)
        return session

    def initPerThread(self) -> None:  # noqa: N802 - vboxapi's name
        """Threads need no preparation here."""

    def deinit(self) -> None:
        """Log off; happens by itself when nobody holds the manager any more, and at Python's end."""
        if self._farewell is not None:
            self._farewell()

    # --- calls --------------------------------------------------------------------------------------

    def operation(self, name: str) -> Operation | None:
        """The operation of that name, None if the service has none."""
        with self._lock:
            if name not in self._operations:
                declared = self._client.wsdl.bindings[_BINDING].all().get(name)
                self._operations[name] = None if declared is None else Operation.of(declared)
            return self._operations[name]

    def call(self, name: str, this: str | None, *arguments: Any) -> Any:
        """Call an operation on the object ``this``; results are as XPCOM would give them.

        Raises `SoapError`, `TypeError` and `ValueError` (arguments that it does not take).
        """
        operation = self.operation(name)
        if operation is None:
            raise AttributeError(f"VirtualBox's web service has no operation {name}")
        if len(arguments) != len(operation.parameters):
            raise TypeError(f"{operation} takes {len(operation.parameters)} arguments, got {len(arguments)}")
        pairs = zip(operation.parameters, arguments, strict=True)
        given = {part.name: self._outgoing(part, value) for part, value in pairs}
        if this is not None:
            given["_this"] = this
        with self._lock:
            if len(self._dropped) >= _BUNCH:
                self._give_back()
            answer = self._send(name, given)
            if not operation.results:
                return None
            # With one result, zeep answers with nothing around it.
            alone = len(operation.results) == 1
            results = [
                self._incoming(name, part, answer if alone else getattr(answer, part.name))
                for part in operation.results
            ]
        return results[0] if alone else tuple(results)

    def drop(self, ref: str) -> None:
        """Remember that a Python object for ``ref`` is gone; no lock, as the garbage collector calls."""
        self._dropped.append(ref)

    def _send(self, name: str, given: dict[str, Any]) -> Any:
        from zeep.exceptions import Error, Fault

        try:
            return getattr(self._service, name)(**given)
        except Fault as fault:
            raise self._told(fault) from None
        except (OSError, Error) as error:  # what requests raises is an OSError
            raise SoapError(_UNREACHABLE, f"{self.url}: {error}") from None

    def _told(self, fault: Any) -> SoapError:
        """The error that a fault stands for."""
        code, info = (_said(fault, name) for name in ("resultCode", "returnval"))
        if _said(fault, "badObjectID"):
            return SoapError(
                _FORGOTTEN, f"{self.url}: it has forgotten the object, as it does after a time without calls"
            )
        text = re.sub(
            r"^VirtualBox error: (apirc=\w+ )?| \(0x[0-9a-f]{8}\)$", "", fault.message or "no reason is given"
        )
        if info:
            with contextlib.suppress(SoapError):
                text = "\n".join(self._texts(info)) or text
        if _NO_FILE.search(text):
            text += f" - VirtualBox, behind {self.url}, must see files under the same path as this host"
        return SoapError(int(code or 0x80004005) & 0xFFFFFFFF, text)

    def _texts(self, info: str) -> list[str]:
        texts, error = [], self._object(info, "IVirtualBoxErrorInfo")
        while error is not None:
            texts.append(error.text)
            error = error.next
        return list(dict.fromkeys(texts))

    # --- values -------------------------------------------------------------------------------------

    def _outgoing(self, part: Part, value: Any) -> Any:
        if part.is_list:
            return [self._plain(part, one) for one in value]
        return self._plain(part, value)

    def _plain(self, part: Part, value: Any) -> Any:
        if isinstance(value, SoapObject):
            return value._ref
        if part.type in self.constants:
            return self.constants.label(part.type, value)
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        return "" if value is None else value

    def _incoming(self, where: str, part: Part, value: Any) -> Any:
        if part.is_list:
            return [self._one(where, part, one) for one in value or ()]
        return self._one(where, part, value)

    def _one(self, where: str, part: Part, value: Any) -> Any:
        if part.type in self.constants:
            return self.constants.number(part.type, value)
        if part.members:
            return SimpleNamespace(
                **{one.name: self._incoming(part.type, one, getattr(value, one.name)) for one in part.members}
            )
        if part.type != "string":
            return value
        if where in _BYTES:
            return base64.b64decode(value or "")
        if not value:
            # zeep has None for an empty string; it is null where objects are due.
            return None if (where, part.name) in self._interfaces or _is_object(where, part.name) else ""
        return self._referred(where, part.name, value)

    def _referred(self, where: str, name: str, value: str) -> Any:
        """The object that a string refers to, or the string.

        References begin with a random number of the session, which no text of a guest can have.
        """
        session = self._root.split("-")[0]
        if not re.fullmatch(rf"{session}-[0-9a-f]{{16}}", value):
            return value
        if (where, name) not in self._interfaces:
            interface = self._send("IManagedObjectRef_getInterfaceName", {"_this": value})
            if not interface:
                return value
            self._interfaces[where, name] = interface
        return self._object(value, self._interfaces[where, name])

    # --- objects and the session --------------------------------------------------------------------

    def _object(self, ref: str, interface: str) -> SoapObject:
        """A Python object for a reference; the lock is held."""
        self._living[ref] += 1
        return SoapObject(self, interface, ref)

    def _give_back(self) -> None:
        """Let the service forget what no Python object stands for any more; the lock is held.

        The service has one reference for one object, however often it was given out.
        """
        gone = set()
        while self._dropped:
            ref = self._dropped.popleft()
            if ref not in self._living:
                continue  # of a former session, or VirtualBox itself
            self._living[ref] -= 1
            if self._living[ref] <= 0:
                gone.add(ref)
            else:
                gone.discard(ref)
        for ref in gone:
            del self._living[ref]
            with contextlib.suppress(SoapError):
                self._send("IManagedObjectRef_release", {"_this": ref})

    def _log_on(self) -> None:
        with self._lock:
            self._root = ""
            self._living.clear()
            try:
                root = self._send(
                    "IWebsessionManager_logon", {"username": self._user, "password": self._password}
                )
            except SoapError as error:
                raise self._refused(error) from None
            self._root = root
            if self._farewell is not None:
                self._farewell.detach()
            self._farewell = weakref.finalize(self, _log_off, self._service, root)

    def _refused(self, error: SoapError) -> DriverUnavailableError | ConfigurationError:
        if error.errno == _UNREACHABLE:
            return _unreachable(self.url, error.msg)
        return ConfigurationError(
            f"{self.url}: the web service refuses the user {self._user!r} or the password: {error.msg}",
            hint="give the user with --vm-user and the password in VMFEST_PASSWORD; how they are checked is "
            "said there by: VBoxManage list systemproperties (Webservice auth. library)",
        )


class SoapObject:
    """An object of VirtualBox, as XPCOM would give it."""

    __slots__ = ("_interface", "_manager", "_ref")
    _manager: SoapManager
    _interface: str
    _ref: str

    def __init__(self, manager: SoapManager, interface: str, ref: str) -> None:
        """Stand for ``ref``, whose operations are those of ``interface`` and what it is derived from."""
        object.__setattr__(self, "_manager", manager)
        object.__setattr__(self, "_interface", interface)
        object.__setattr__(self, "_ref", ref)

    def __repr__(self) -> str:
        """``<IMachine 6ec94fb51c6a6cdf-0000000000000003>``."""
        return f"<{self._interface} {self._ref}>"

    def __eq__(self, other: object) -> bool:
        """Whether both stand for the same object."""
        return isinstance(other, SoapObject) and self._ref == other._ref

    def __hash__(self) -> int:
        """By the reference."""
        return hash(self._ref)

    def __del__(self) -> None:
        """Tell the manager, which will give the reference back."""
        with contextlib.suppress(AttributeError):  # Python is at its end
            self._manager.drop(self._ref)

    def __getattr__(self, name: str) -> Any:
        """The value of an attribute, or a method."""
        if name.startswith("_"):
            raise AttributeError(name)
        if method := self._find(name):
            # pyvbox tells methods by their type; holding `self`, it keeps the reference alive.
            return MethodType(lambda this, *given: this._manager.call(method.name, this._ref, *given), self)
        getter = self._find(f"get{name[0].upper()}{name[1:]}")
        if getter is None or getter.parameters:
            raise AttributeError(f"{self._interface} has no attribute {name}")
        return self._manager.call(getter.name, self._ref)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute."""
        operation = self._find(f"set{name[0].upper()}{name[1:]}")
        if operation is None or len(operation.parameters) != 1:
            raise AttributeError(f"{self._interface} has no attribute {name} that can be set")
        self._manager.call(operation.name, self._ref, value)

    def _find(self, name: str) -> Operation | None:
        for interface in _family(self._interface):
            if operation := self._manager.operation(f"{interface}_{name}"):
                return operation
        return None


def checked_url(url: str) -> str:
    """The URL of a web service; `ConfigurationError` for what is none, or has a password in it."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise ConfigurationError(
            f"{without_password(url)!r} is not the URL of a VirtualBox web service",
            hint="such as http://host:18083/",
        )
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"the URL {without_password(url)!r} must not have a user or a password in it",
            hint="give the user with --vm-user (user=) and the password in VMFEST_PASSWORD (password=)",
        )
    return url if parts.path else url + "/"


def without_password(url: str) -> str:
    """The URL, or what was given as one, as it may be shown.

    >>> without_password("http://me:hush@host:18083/")
    'http://…@host:18083/'
    """
    return re.sub(r"^(\w+://)?.*@", r"\1…@", url, flags=re.DOTALL)


def is_this_host(url: str) -> bool:
    """Whether a web service is on this host, as far as its name or address tells."""
    try:
        addresses = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_DGRAM)
    except (OSError, ValueError):
        return False
    return any(_is_own(family, address) for family, _, _, _, address in addresses)


def _is_own(family: int, address: Any) -> bool:
    # Only a host's own addresses can be bound; nothing is sent.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind(address)
    except OSError:
        return False
    return True


def _described(url: str) -> tuple[Any, Enumerations]:
    """A client of zeep that knows the service's operations, and the service's enumerations."""
    try:
        zeep = importlib.import_module("zeep")
    except ImportError as error:
        raise DriverUnavailableError(
            f"VirtualBox at {url} is reached with SOAP, and the library for it is not installed: {error}",
            hint="pip install 'pytest-vmfest[remote]'",
        ) from error
    # At level DEBUG it tells some ten thousand things of every description.
    talk = logging.getLogger("zeep")
    talk.setLevel(talk.level or logging.INFO)
    transport = zeep.Transport(timeout=_LOAD_TIMEOUT_S, operation_timeout=_CALL_TIMEOUT_S)
    # At level DEBUG it tells all that is sent, the password with it.
    transport.logger = logging.Logger("pytest_vmfest.soap", logging.INFO)
    wsdl = b""
    try:
        wsdl = transport.load(f"{url}?wsdl")
        client = zeep.Client(io.BytesIO(wsdl), transport=transport)
        client.wsdl.bindings[_BINDING].get("IWebsessionManager_logon")
    except OSError as error:
        if getattr(error, "response", None) is None:
            raise _unreachable(url, str(error)) from error
        raise _no_virtualbox(url, str(error)) from error
    except (zeep.exceptions.Error, KeyError, ValueError) as error:
        raise _no_virtualbox(url, "it has no description of one") from error
    constants = enumerations_of(wsdl.decode(errors="replace"))
    if "MachineState" not in constants:
        raise _no_virtualbox(url, "its description has no enumerations")
    return client, constants


def _unreachable(url: str, reason: str) -> DriverUnavailableError:
    return DriverUnavailableError(
        f"{url}: no VirtualBox web service can be reached there: {reason}",
        hint="start it on that host: vboxwebsrv --host ADDRESS --port 18083",
    )


def _no_virtualbox(url: str, reason: str) -> DriverUnavailableError:
    return DriverUnavailableError(
        f"{url}: what answers there is not VirtualBox's web service: {reason}",
        hint="its URL is such as http://host:18083/",
    )


def _said(fault: Any, name: str) -> str:
    """The text of an element in a fault's detail."""
    detail = fault.detail
    found = None if detail is None else detail.find(f".//{{*}}{name}")
    return "" if found is None else found.text or ""


def _is_object(where: str, name: str) -> bool:
    """Whether a result is an object, as far as pyvbox knows.

    The WSDL does not tell objects from strings; pyvbox's documentation of its calls does.
    """
    from virtualbox import library
    from virtualbox.library_base import pythonic_name

    interface, _, called = where.partition("_")
    known = getattr(library, interface, None)
    if not called:  # a struct
        called = name
    attribute = re.sub(r"^get(?=[A-Z])", "", called)
    if said := getattr(known, pythonic_name(attribute[0].lower() + attribute[1:]), None):
        text = str(getattr(said, "__doc__", ""))
        if isinstance(said, property):
            return re.match(r"Get I[A-Z]\w+ value", text) is not None
    said = getattr(known, pythonic_name(called), None)
    result = r"return \w+" if name == "returnval" else f"out {pythonic_name(name)}"
    return re.search(rf"{result} of type :class:`I[A-Z]", str(getattr(said, "__doc__", ""))) is not None


def _family(interface: str) -> list[str]:
    """The interface and those that it is derived from, as far as pyvbox knows."""
    from virtualbox import library

    known = getattr(library, interface, None)
    if not isinstance(known, type):
        return [interface]
    return [one.__name__ for one in known.__mro__ if re.match("I[A-Z]", one.__name__)]


def _log_off(service: Any, root: str) -> None:
    # The service may be gone, or have forgotten the session.
    with contextlib.suppress(Exception):
        service.IWebsessionManager_logoff(refIVirtualBox=root)
