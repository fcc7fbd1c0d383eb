"""What a guest is told, tried in this host's own shell with the system's tools replaced."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_vmfest.guest import Introduction
from pytest_vmfest.specs import PrivateNic


@pytest.fixture
def run_here(tmp_path):
    """Run an introduction with its folders moved into another one and `ip` and `hostname` that only note."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "bin").mkdir()
    for tool in ("ip", "hostname"):
        (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp_path}/calls\n')
        (tmp_path / "bin" / tool).chmod(0o755)
    (tmp_path / "sys/class/net/lan1/device").mkdir(parents=True)
    (tmp_path / "sys/class/net/lan1/address").write_text("52:54:00:00:00:01\n")

    def run(introduction: Introduction, was: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        script = introduction.script(was)
        script = re.sub(r"(?<=[ \"])/(etc|sys|proc)/", rf"{tmp_path}/\1/", script)
        path = f"{tmp_path}/bin:{os.environ['PATH']}"
        return subprocess.run(
            ["/bin/sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=False
        )

    return run


def test_names_are_added_once_and_others_kept(run_here, tmp_path):
    """The hosts file keeps foreign lines; running it again, or with other nodes, leaves no old ones."""
    hosts = tmp_path / "etc/hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    assert run_here(Introduction("db-0", hosts=(("db-0", "10.0.0.1"), ("old", "10.0.0.9")))).returncode == 0
    assert run_here(Introduction("db-0", hosts=(("db-0", "10.0.0.1"), ("web-0", "10.0.0.2")))).returncode == 0
    assert hosts.read_text().splitlines() == [
        "127.0.0.1 localhost",
        "10.0.0.1 db-0 # vmfest",
        "10.0.0.2 web-0 # vmfest",
    ]
    assert (tmp_path / "etc/hostname").read_text() == "db-0\n"
    assert "hostname db-0" in (tmp_path / "calls").read_text()


def test_the_kernel_is_told_without_a_program(run_here, tmp_path):
    """Where /proc can be written to, that is enough."""
    name = tmp_path / "proc/sys/kernel/hostname"
    name.parent.mkdir(parents=True)
    name.write_text("old")
    assert run_here(Introduction("db-0")).returncode == 0
    assert name.read_text() == "db-0\n"
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (None, ""),
        ("", ""),
        ("127.0.0.1 localhost", "127.0.0.1 localhost\n"),
        ("\n  # a\\tb * $HOME \n::1\tlocalhost\n", "\n  # a\\tb * $HOME \n::1\tlocalhost\n"),
    ],
)
def test_lines_of_others_stay_as_they_are(run_here, tmp_path, before, kept):
    """Byte for byte, also where the last one has no end, and where there are none."""
    hosts = tmp_path / "etc/hosts"
    if before is not None:
        hosts.write_text(before)
    for _ in range(2):
        done = run_here(Introduction("box"))
        assert (done.returncode, done.stderr) == (0, "")
        assert hosts.read_text() == f"{kept}127.0.1.1 box # vmfest\n"


def test_a_lone_node_knows_its_own_name(run_here, tmp_path):
    """Without a group the name leads to the loopback interface, as Debian has it."""
    assert run_here(Introduction("box")).returncode == 0
    assert (tmp_path / "etc/hosts").read_text().strip() == "127.0.1.1 box # vmfest"


def test_the_interface_is_found_by_its_mac(run_here, tmp_path):
    """The address goes to the card that has the MAC, whatever the guest calls it, and to nothing on it."""
    nic = PrivateNic("net", mac="52:54:00:00:00:01", address="10.77.0.10")
    (tmp_path / "sys/class/net/bonding_masters").write_text("")  # no interface, though it is among them
    vlan = tmp_path / "sys/class/net/lan1.7"  # no card, though it has that address
    vlan.mkdir()
    (vlan / "address").write_text("52:54:00:00:00:01\n")
    assert run_here(Introduction("box", (nic,))).returncode == 0
    calls = Path(tmp_path / "calls").read_text().splitlines()
    assert "ip address replace 10.77.0.10/24 dev lan1" in calls
    assert "ip link set lan1 up" in calls


def test_an_interface_from_a_template_gets_its_own_mac(run_here, tmp_path):
    """It is found by the MAC that it has from there; one that has its own already keeps it."""
    nic = PrivateNic("net", mac="52:54:00:00:00:0a", address="10.77.0.10")
    assert run_here(Introduction("box", (nic,)), was=["52:54:00:00:00:01"]).returncode == 0
    calls = Path(tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if call.startswith("ip")] == [
        "ip link set dev lan1 down address 52:54:00:00:00:0a",
        "ip address replace 10.77.0.10/24 dev lan1",
        "ip link set lan1 up",
    ]
    (tmp_path / "calls").unlink()
    own = PrivateNic("net", mac="52:54:00:00:00:01", address="10.77.0.10")
    assert run_here(Introduction("box", (own,)), was=["52:54:00:00:00:01"]).returncode == 0
    assert "down" not in Path(tmp_path / "calls").read_text()


def test_a_missing_interface_is_told(run_here):
    """A guest without the network card says which one is missing."""
    done = run_here(Introduction("box", (PrivateNic("net", mac="52:54:00:00:00:02", address="10.77.0.10"),)))
    assert done.returncode != 0
    assert "no network interface has the MAC 52:54:00:00:00:02" in done.stderr
