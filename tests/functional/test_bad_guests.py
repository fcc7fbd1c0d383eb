"""Guests that never become nodes: one clear error each, and nothing left."""

from dataclasses import replace

import pytest
import scan

from pytest_vmfest import GroupStartError, Server, StartError
from pytest_vmfest.ssh import keys


@pytest.fixture
def tiny(vm_server):
    """The model `tiny`."""
    return vm_server.image("tiny")


@pytest.fixture
def server(tmp_path, vm_server):
    """A server with an empty store of its own; afterwards it has no machine."""
    home = tmp_path / "home"
    with Server(vm_server.driver.name, home=home, boot_timeout_s=300) as server:
        yield server
        assert server.machines() == []
        assert scan.leftovers(home) == []


@pytest.fixture
def silent_disk(tmp_path):
    """A disk whose boot sector says one word on the serial port and halts."""
    code = bytes.fromhex("ba f8 03 b0 21 ee f4 eb fd")  # mov dx,0x3f8; mov al,'!'; out dx,al; hlt; jmp
    disk = tmp_path / "silent.img"
    disk.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return disk


def test_a_guest_that_never_opens_ssh(server, silent_disk):
    """The error tells the stage, the time, and what the console said last."""
    server.boot_timeout_s = 20
    with pytest.raises(StartError, match="did not start") as caught:
        server.launch("mute", image=silent_disk)
    assert caught.value.stage == "kernel"
    assert caught.value.console_tail == "!"
    assert "of 20 s" in str(caught.value)
    assert "| !" in str(caught.value)


@pytest.mark.qemu
def test_a_guest_that_panics_ends_the_wait_at_once(server, tiny):
    """A kernel panic is told with its line, long before the deadline."""
    assert tiny.direct_boot is not None
    boot = replace(tiny.direct_boot, command_line=tiny.direct_boot.command_line + " rdinit=/none init=/none")
    with pytest.raises(StartError, match="Kernel panic") as caught:
        server.launch("panicky", image=replace(tiny, direct_boot=boot))
    assert caught.value.elapsed_s < 120


def test_wrong_credentials(server, tiny, tmp_path):
    """A key that the guest does not know is told as such, with the user, and not tried until the deadline."""
    other = keys.ensure_identity(tmp_path / "other-keys")
    login = replace(tiny.login, private_key=other.private_key)
    with pytest.raises(StartError, match="root") as caught:
        server.launch("locked", image=replace(tiny, login=login))
    assert caught.value.stage == "login"


def test_another_host_key(server, tiny, tmp_path):
    """A guest that is not the one that was built is not talked to."""
    other = keys.ensure_identity(tmp_path / "other-keys")
    login = replace(tiny.login, host_key=other.host_public_key)
    with pytest.raises(StartError, match=r"(?i)host key") as caught:
        server.launch("stranger", image=replace(tiny, login=login))
    assert caught.value.stage == "login"


def test_every_failure_of_a_group_is_told(server, silent_disk):
    """When no node of a group starts, the error names each."""
    server.boot_timeout_s = 20
    with pytest.raises(GroupStartError) as caught:
        server.launch_group(2, image=silent_disk)
    assert 1 <= len(caught.value.failures) <= 2
    assert "node-0" in str(caught.value) or "node-1" in str(caught.value)
