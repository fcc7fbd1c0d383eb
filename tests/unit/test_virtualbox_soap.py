"""VirtualBox's web service without VirtualBox: its description, its URL, and what is not it."""

import socket
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from pytest_vmfest.config import Settings, load_settings, web_service_password
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.drivers.virtualbox.soap import SoapError, _is_object, checked_url, is_this_host
from pytest_vmfest.drivers.virtualbox.trouble import OBJECT_NOT_FOUND, code_of, text_of
from pytest_vmfest.drivers.virtualbox.wsdl import Operation, enumerations_of
from pytest_vmfest.errors import ConfigurationError, DriverUnavailableError
from pytest_vmfest.progress import silent
from pytest_vmfest.run import Run
from pytest_vmfest.server import Server

WSDL = """
      <!-- enum: MachineState -
            Null: 0 -
            PoweredOff: 1 -
            Running: 6 -
            LastOnline: 0x13 -
            FirstOnline: 6 -
            -->
      <xsd:simpleType name="MachineState"/>
      <!-- enum: AccessMode -
            ReadOnly: 1 -
            -->
"""


def test_enumerations_have_the_numbers_of_the_description():
    """Labels become numbers and back; marks of ranges are not what a number is called."""
    found = enumerations_of(WSDL)
    assert found.MachineState_Running == 6
    assert found.number("MachineState", "LastOnline") == 19
    assert found.label("MachineState", 6) == "Running"
    assert found.all_values("AccessMode") == {"ReadOnly": 1}
    assert found.all_values("Nothing") == {}
    assert "AccessMode" in found
    assert "Nothing" not in found


@pytest.mark.parametrize("name", ["MachineState_Dancing", "Nothing_At", "plain"])
def test_unknown_constants_are_no_attributes(name):
    """As with vboxapi, `getattr` with a default works."""
    assert getattr(enumerations_of(WSDL), name, None) is None


def test_numbers_that_no_label_has_are_refused():
    """Flags that were added up, for example, have no label."""
    with pytest.raises(ValueError, match="AccessMode has no value 7"):
        enumerations_of(WSDL).label("AccessMode", 7)


def element(kind, many=False, members=()):
    """An element as zeep has it."""
    return SimpleNamespace(type=SimpleNamespace(name=kind, elements=members), accepts_multiple=many)


def test_operations_have_their_results_in_the_order_of_xpcom():
    """The returned value comes first, though the description has it last; the object is no parameter."""
    given = [("_this", element("string")), ("name", element("string")), ("pause", element("boolean"))]
    results = [
        ("id", element("string")),
        ("code", element("int", many=True)),
        ("returnval", element("string")),
    ]
    declared = SimpleNamespace(
        name="IMachine_takeSnapshot",
        input=SimpleNamespace(body=SimpleNamespace(type=SimpleNamespace(elements=given))),
        output=SimpleNamespace(body=SimpleNamespace(type=SimpleNamespace(elements=results))),
    )
    operation = Operation.of(declared)
    assert str(operation) == "IMachine_takeSnapshot(name, pause)"
    assert [part.name for part in operation.results] == ["returnval", "id", "code"]
    assert [part.is_list for part in operation.results] == [False, False, True]


@pytest.mark.parametrize(
    ("where", "result", "expected"),
    [
        ("IMedium_getParent", "returnval", True),
        ("IMachine_getCurrentSnapshot", "returnval", True),
        ("IMachine_getId", "returnval", False),
        ("IMachine_getDescription", "returnval", False),
        ("IMachine_takeSnapshot", "returnval", True),
        ("IMachine_takeSnapshot", "id", False),
        ("IMachine_getGuestProperty", "flags", False),
        ("IHost_createHostOnlyNetworkInterface", "hostInterface", True),
        ("IMediumAttachment", "medium", True),
        ("IMediumAttachment", "controller", False),
        ("IProgress_getErrorInfo", "returnval", True),
        ("IVirtualBoxErrorInfo_getNext", "returnval", True),
        ("ISomethingNew_getThing", "returnval", False),
    ],
)
def test_objects_are_told_from_texts(where, result, expected):
    """An empty text is null where pyvbox knows of an object."""
    assert _is_object(where, result) is expected


def test_errors_look_like_those_of_xpcom():
    """So that one place translates both."""
    error = SoapError(OBJECT_NOT_FOUND, "Could not find it")
    assert code_of(error) == OBJECT_NOT_FOUND
    assert text_of(error) == "Could not find it"
    assert str(error) == "0x80bb0001 (Could not find it)"


@pytest.mark.parametrize("url", ["http://host:18083/", "https://host/vbox", "http://[::1]:18083/"])
def test_urls_of_web_services(url):
    """With or without a port."""
    assert checked_url(url) == url


def test_a_url_without_path_gets_one():
    """The description is asked for behind it."""
    assert checked_url("http://host:18083") == "http://host:18083/"


@pytest.mark.parametrize(
    "url", ["", "host:18083", "ftp://host/", "http://", "http://host:port/", "http://host:0", "http://[::1"]
)
def test_what_is_no_url_of_a_web_service(url):
    """The error shows what one looks like."""
    with pytest.raises(ConfigurationError, match="such as http://host:18083/"):
        checked_url(url)


@pytest.mark.parametrize(
    "url", ["http://me:hush@host:18083/", "ftp://me:hush@host/", "http://me:hush@host:x/"]
)
def test_passwords_in_urls_are_refused_and_not_repeated(url):
    """They would be in logs and lists of processes."""
    with pytest.raises(ConfigurationError) as caught:
        checked_url(url)
    assert "hush" not in str(caught.value)


def test_whether_a_web_service_is_on_this_host(monkeypatch):
    """By name or address; what cannot be resolved is elsewhere."""
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert is_this_host(f"http://{host}:18083/")
    assert not is_this_host("http://192.0.2.1:18083/")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **how: raised(socket.gaierror("unknown")))
    assert not is_this_host("http://host:18083/")


def raised(error):
    """Raise it, where only an expression can be."""
    raise error


@contextmanager
def answering(status, body):
    """A web server that always answers the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def no_proxy(monkeypatch):
    """Loopback is never reached through a proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


EMPTY_WSDL = (
    b'<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" name="Other" targetNamespace="urn:other"/>'
)


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"nothing here"), (200, b"<html><p>Hello</html>"), (200, b"plain"), (200, b""), (200, EMPTY_WSDL)],
    ids=["404", "html", "text", "nothing", "another service"],
)
def test_something_else_answers(tmp_path, no_proxy, status, body):
    """It is told that this is no VirtualBox."""
    pytest.importorskip("zeep")
    with answering(status, body) as url:
        with pytest.raises(DriverUnavailableError, match="is not VirtualBox's web service") as caught:
            connect(DriverSettings(tmp_path, url=url))
    assert url in str(caught.value)


def test_nothing_answers(tmp_path, no_proxy):
    """The error tells how the service is started."""
    pytest.importorskip("zeep")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but does not listen
        with pytest.raises(DriverUnavailableError, match="vboxwebsrv --host"):
            connect(DriverSettings(tmp_path, url=f"http://127.0.0.1:{taken.getsockname()[1]}/"))


def test_without_zeep(tmp_path, monkeypatch):
    """The error tells what to install."""
    monkeypatch.setitem(sys.modules, "zeep", None)
    with pytest.raises(DriverUnavailableError, match=r"pip install 'pytest-vmfest\[remote\]'"):
        connect(DriverSettings(tmp_path, url="http://127.0.0.1:1/"))


def test_the_password_comes_from_the_environment_alone():
    """It is no option, and no representation has it."""
    environ = {"VMFEST_URL": "http://host:1/", "VMFEST_USER": "me", "VMFEST_PASSWORD": "hush"}
    settings = load_settings(environ=environ)
    assert (settings.url, settings.user) == ("http://host:1/", "me")
    assert web_service_password(environ) == "hush"
    assert "hush" not in repr(settings) + repr(DriverSettings(None, password="hush"))


def test_a_server_for_a_url(tmp_path):
    """VirtualBox takes one, also when it is chosen by itself; nothing is asked before the first use."""
    for driver in ("virtualbox", "auto"):
        server = Server(driver, url="http://host:1/", user="me", password="hush", home=tmp_path / "home")
        assert server._driver.name == "virtualbox"
        assert server._driver.settings.password == "hush"
        assert "hush" not in repr(server)
    assert not (tmp_path / "home").exists()


def test_a_run_sends_only_what_is_not_local_to_the_url(monkeypatch, tmp_path):
    """A test that asks for a local driver by name gets it; a local driver for the whole run is a mistake."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path))
    run = Run(Settings(url="http://host:1/"), "id", "main", silent)
    assert run.server("virtualbox")._driver.settings.url == "http://host:1/"
    assert run.server("fake")._driver.settings.url is None
    with pytest.raises(ConfigurationError, match="takes no url"):
        Run(Settings(driver="fake", url="http://host:1/"), "id", "main", silent).server()
