"""One fresh machine per test: whatever a test does to it, the next test does not see it."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.vm(image="tiny")


def test_a_command(vm_instance):
    """A machine is there, booted and connected."""
    assert vm_instance.check_output("uname -s") == "Linux"
    assert vm_instance.check_output("hostname") == vm_instance.name


def test_a_file_there_and_back(vm_instance, tmp_path: Path):
    """Files travel byte for byte, and a reboot keeps them."""
    local = tmp_path / "data"
    local.write_bytes(bytes(range(256)))
    vm_instance.put(local, "/root/data")
    vm_instance.reboot()
    vm_instance.get("/root/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == local.read_bytes()


def test_a_service_reached_from_here(vm_instance):
    """A port of the guest is opened on this host's loopback interface."""
    from urllib.request import urlopen

    vm_instance.check_output("mkdir -p /srv/www && echo hello > /srv/www/index.html")
    vm_instance.check_output("httpd -p 8080 -h /srv/www")
    host, port = vm_instance.forward(8080)
    with urlopen(f"http://{host}:{port}/index.html", timeout=30) as answer:
        assert answer.read() == b"hello\n"
