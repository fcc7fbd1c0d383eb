"""Finding VirtualBox and its Python side, and what is said when they are not as they should be."""

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
from virtualbox.library import HostNetworkInterfaceType

from pytest_vmfest.drivers import load_driver
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox import connection, diagnosis, trouble
from pytest_vmfest.drivers.virtualbox.connection import Installation, find_installation
from pytest_vmfest.errors import DriverUnavailableError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No VirtualBox but what a test makes; no manager from another test."""
    monkeypatch.setattr(connection, "_USUAL_PLACES", ())
    monkeypatch.setattr(connection, "_CONFIGURATION", connection.Path("/nowhere"))
    for name in ("VBOX_INSTALL_PATH", "VBOX_PROGRAM_PATH", "VBOX_SDK_PATH"):
        monkeypatch.setenv(name, "")  # so that what a test leaves there is taken away again
        monkeypatch.delenv(name)
    connection._local_manager.cache_clear()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder that looks like VirtualBox 7.2.22, which is found."""
    folder = tmp_path / "virtualbox"
    folder.mkdir()
    (folder / "VBoxSVC").touch()
    manage = folder / "VBoxManage"
    manage.write_text("#!/bin/sh\necho 'WARNING: the module is not loaded'\necho 7.2.22_Debianr175245\n")
    manage.chmod(0o755)
    monkeypatch.setattr(connection, "_USUAL_PLACES", (folder,))
    return folder


def test_no_virtualbox():
    """The error says where it was looked for, and how to get it."""
    with pytest.raises(DriverUnavailableError, match=r"not installed.*\n.*VBOX_INSTALL_PATH"):
        find_installation()


def test_the_version_is_read_past_warnings(installed):
    """VBoxManage complains first when the kernel module is missing."""
    found = find_installation()
    assert (found.folder, found.version) == (installed, "7.2.22")
    assert found.sdk_command == "pip install 'vbox-sdk==7.2.22'"


def test_the_place_can_be_said(installed, tmp_path, monkeypatch):
    """By the environment first, then by VirtualBox's own configuration file."""
    said, configured = tmp_path / "said", tmp_path / "with blank"
    for folder in (said, configured):
        folder.mkdir()
        (folder / "VBoxSVC").touch()
    settings = tmp_path / "vbox.cfg"
    settings.write_text(f"# comment\nINSTALL_DIR='{configured}'\n")
    monkeypatch.setattr(connection, "_CONFIGURATION", settings)
    assert find_installation() == Installation(configured, "")
    monkeypatch.setenv("VBOX_INSTALL_PATH", str(said))
    assert find_installation() == Installation(said, "")


@pytest.mark.usefixtures("installed")
def test_no_python_side(tmp_path, monkeypatch):
    """The command that installs the right one is told."""
    monkeypatch.setitem(sys.modules, "vboxapi", None)
    with pytest.raises(DriverUnavailableError, match=r"(?s)vboxapi.*pip install 'vbox-sdk==7.2.22'"):
        connection.connect(DriverSettings(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_python_side_of_another_version(tmp_path, monkeypatch):
    """It would take one state of a machine for another; so it is refused."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7.1.18")
    with pytest.raises(DriverUnavailableError, match=r"(?s)is 7.2.22, but.*is 7.1.18.*vbox-sdk==7.2.22"):
        connection.connect(DriverSettings(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'VBoxPython3_99'"),
        Exception("Cannot find VBoxPython module (tried: VBoxPython3_99, VBoxPython3, VBoxPython)"),
    ],
)
def test_bindings_that_do_not_fit_this_python(tmp_path, monkeypatch, error):
    """VirtualBox's own bindings are built for one Python."""

    class Api:
        @staticmethod
        def VirtualBoxManager(style, parameters):  # noqa: N802
            raise error

    monkeypatch.setitem(sys.modules, "vboxapi", Api)
    with pytest.raises(DriverUnavailableError, match=r"no bindings for this Python.*VBoxPython3_99"):
        connection.connect(DriverSettings(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_service_that_does_not_answer(tmp_path, monkeypatch, capsys):
    """What vboxapi only prints is in the error, and nothing is printed."""

    class Manager:
        def __init__(self, style, parameters):
            print("init exception: ", "NS_ERROR_FACTORY_NOT_LOADED")

        def getVirtualBox(self):  # noqa: N802
            raise OSError("no factory")

    monkeypatch.setitem(sys.modules, "vboxapi", type("Api", (), {"VirtualBoxManager": Manager}))
    with pytest.raises(DriverUnavailableError, match=r"VBoxSVC.*NOT_LOADED(?s:.*)VBoxManage list"):
        connection.connect(DriverSettings(tmp_path))
    assert capsys.readouterr().out == ""


def test_auto_takes_qemu_where_there_is_no_virtualbox(tmp_path):
    """And says why."""
    driver = load_driver("auto", DriverSettings(tmp_path))
    assert driver.name == "qemu"
    assert driver.chosen_because == "no virtualbox: VirtualBox is not installed"


@pytest.fixture
def working(installed, tmp_path, monkeypatch):
    """A host on which nothing speaks against VirtualBox."""
    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: object())
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("flags\t\t: fpu svm\n")
    device = tmp_path / "vboxdrv"
    device.touch()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    bindings = installed / "sdk/bindings/xpcom/python/xpcom"
    bindings.mkdir(parents=True)
    (bindings / "__init__.py").touch()
    (bindings / "vboxxpcom.py").write_text("import VBoxPython3\n")
    (installed / "VBoxPython3.py").touch()
    image_program = tmp_path / "bin/qemu-img"
    image_program.parent.mkdir()
    image_program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(image_program.parent))
    monkeypatch.setattr(trouble, "DEVICE", device)
    monkeypatch.setattr(diagnosis, "_CPU", cpu)
    monkeypatch.setattr(diagnosis, "_MODULES", tmp_path / "modules")
    return tmp_path


def test_auto_takes_virtualbox_where_nothing_speaks_against_it(working):
    """Without starting anything."""
    driver = load_driver("auto", DriverSettings(working))
    assert (driver.name, driver.chosen_because) == ("virtualbox", "virtualbox works here")
    assert driver.describe() == "VirtualBox 7.2.22"


def test_no_bindings_for_this_python(working, installed):
    """They are loaded on trial by a Python of its own, and what that says is told."""
    (installed / "VBoxPython3.py").write_text(
        "raise Exception('Cannot find VBoxPython module (tried: it)')\n"
    )
    reason = diagnosis.why_not(DriverSettings(working))
    assert sys.executable in reason
    assert reason.endswith("Cannot find VBoxPython module (tried: it)")
    check = diagnosis.check(DriverSettings(working))[-1]
    assert (check.name, check.ok) == ("VirtualBox SDK", False)
    assert "the Python that VirtualBox was built for" in check.remedy


@pytest.mark.parametrize("version", ["6.1.50", "7.3.0"])
def test_versions_that_nobody_has_looked_at(working, installed, version):
    """Those that work are named."""
    (installed / "VBoxManage").write_text(f"#!/bin/sh\necho {version}r1\n")
    assert f"{version} is not known" in diagnosis.why_not(DriverSettings(working))
    assert "7.0, 7.1, 7.2" in diagnosis.check(DriverSettings(working))[0].remedy


def test_a_python_side_that_connecting_would_refuse(working, monkeypatch):
    """One of another version is not taken by `auto`, either."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7.1.18")
    assert "(vbox-sdk) is 7.1.18" in diagnosis.why_not(DriverSettings(working))


def test_no_image_program(working):
    """Models are converted by qemu-img; doctor names the package."""
    (working / "bin/qemu-img").unlink()
    assert "there is no qemu-img" in diagnosis.why_not(DriverSettings(working))
    (check,) = [one for one in diagnosis.check(DriverSettings(working)) if one.name == "qemu-img"]
    assert (check.ok, check.packages) == (False, ("qemu-utils",))


class Service:
    """What doctor asks of a connection."""

    version = "7.2.22"

    def __init__(self, *interfaces):
        kinds = ("bridged", "host_only")
        made = [
            SimpleNamespace(name=name, interface_type=getattr(HostNetworkInterfaceType, kind))
            for kind, names in zip(kinds, interfaces, strict=True)
            for name in names
        ]
        self.vbox = SimpleNamespace(home_folder="/home/me/VB", host=SimpleNamespace(network_interfaces=made))


def test_what_doctor_says_of_a_virtualbox_that_works(working, monkeypatch):
    """In plain words, with one connection for all."""
    connections = []

    def connect(settings):
        connections.append(Service(["eth0", "wlan0"], ["vboxnet0"]))
        return connections[-1]

    monkeypatch.setattr(diagnosis, "connect", connect)
    checks = diagnosis.check(DriverSettings(working))
    assert [check for check in checks if not check.ok] == []
    told = "\n".join(check.detail for check in checks)
    for part in ("version 7.2.22", "vboxdrv is loaded", "AMD-V", "KVM is not loaded", "qemu-img", "bindings"):
        assert part in told
    for part in ("/home/me/VB", "eth0, wlan0", "vboxnet0"):
        assert part in told
    assert len(connections) == 1
    assert diagnosis.check(DriverSettings(working), connections[0]) == checks
    assert len(connections) == 1


def test_what_doctor_says_of_missing_networks(working, monkeypatch):
    """A host-only interface is made when its module is there; without interfaces nothing can be bridged."""
    settings, service = DriverSettings(working), Service([], [])
    monkeypatch.setattr(diagnosis, "_HOST_ONLY_DEVICE", working / "vboxnetctl")
    local, lan = diagnosis.check(settings, service)[-2:]
    assert (local.ok, local.remedy) == (False, "sudo modprobe -a vboxnetadp vboxnetflt")
    assert not lan.ok
    (working / "vboxnetctl").touch()
    local = diagnosis.check(settings, service)[-2]
    assert local.ok
    assert "vboxnet0 will be made" in local.detail


def test_no_kernel_module(working):
    """Without it no machine runs."""
    (working / "vboxdrv").unlink()
    assert "vboxdrv is not loaded" in diagnosis.why_not(DriverSettings(working))


def test_a_cpu_without_virtualization(working):
    """VirtualBox cannot do without."""
    (working / "cpuinfo").write_text("flags\t\t: fpu\n")
    assert "neither VT-x" in diagnosis.why_not(DriverSettings(working))


@pytest.mark.parametrize(
    ("version", "at_load", "works"),
    [("7.1.4", "Y", False), ("7.1.4", "N", True), ("7.2.0", "Y", True)],
)
def test_kvm_that_holds_the_cpu(working, installed, version, at_load, works):
    """Kernels that give it the CPU at once leave none to VirtualBox before 7.2, which asks KVM for it."""
    (working / "modules/kvm_amd").mkdir(parents=True)
    parameters = working / "modules/kvm/parameters"
    parameters.mkdir(parents=True)
    (parameters / "enable_virt_at_load").write_text(f"{at_load}\n")
    (installed / "VBoxManage").write_text(f"#!/bin/sh\necho {version}r1\n")
    reason = diagnosis.why_not(DriverSettings(working))
    assert (reason == "") is works, reason


@pytest.mark.parametrize("url", ["http://me:hush@host:18083/", "http://me:hu/sh@host:1", "me:hush@host"])
def test_a_password_in_the_url_is_shown_nowhere(tmp_path, url):
    """Neither in the report's header nor by doctor, which has a finding instead of an error."""
    settings = DriverSettings(tmp_path, url=url)
    header = diagnosis.describe(settings, None)
    assert "@host" in header
    service = diagnosis.check(settings)[-1]
    assert not service.ok
    assert "sh@" not in header + service.detail + service.remedy
