"""What guests are told that go on from a frozen machine of VirtualBox's."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pytest_vmfest.drivers.virtualbox import moving
from pytest_vmfest.waiting import Deadline, wait_for


class Guest:
    """A guest's files in a folder, and its programs, which only say what they were asked to do."""

    CLIENT_S = 5

    def __init__(self, root):
        self.root = root
        self.card = root / "var/lib/vmfest/card"
        self.log = root / "said"
        self.log.touch()
        self.processes = 0
        (root / "bin").mkdir()
        for name, rest in {
            "ip": "",
            "kill": 'rm -r "$ROOT/proc/$1"',
            "udhcpc": f"exec sleep {self.CLIENT_S}",
            "dhclient": f"exec sleep {self.CLIENT_S}",
        }.items():
            program = root / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >> "$ROOT/said"\n{rest}\n')
            program.chmod(0o755)

    @property
    def said(self):
        return self.log.read_text().splitlines()

    def add_card(self, name, mac):
        card = self.root / "sys/class/net" / name
        (card / "device").mkdir(parents=True)
        (card / "address").write_text(f"{mac}\n")

    def add_on_card(self, name, mac):
        """An interface that is no card, such as a VLAN, with the address of the one it stands on."""
        (self.root / "sys/class/net" / name).mkdir()
        (self.root / "sys/class/net" / name / "address").write_text(f"{mac}\n")

    def add_process(self, name, *words):
        process = self.root / "proc" / str(100 + self.processes)
        process.mkdir(parents=True)
        (process / "comm").write_text(f"{name}\n")
        (process / "cmdline").write_text("".join(f"{word}\0" for word in words))
        self.processes += 1

    def run(self, shell, text, given):
        for place in ("/proc/", "/sys/class", "/var/lib", "/run/vmfest"):
            text = text.replace(place, f"{self.root}{place}")
        # The program itself is no shell script, and the shell's own kill knows only real processes.
        text = text.replace(f"  {self.card} ", "  : ")
        text = f'kill() {{ command {self.root}/bin/kill "$@"; }}\n{text}'
        path = f"{self.root}/bin:{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, "ROOT": str(self.root)}
        subprocess.run(
            [*shell, "-c", text], input=given, env=environ, capture_output=True, check=True, timeout=30
        )


def test_the_scripts_are_for_every_shell():
    """They are POSIX shell text; each card is moved from the old address to the new one."""
    move = moving.move_script(["08:00:27:00:00:01"], ["08:00:27:00:00:02"])
    assert move.endswith("\nmove 08:00:27:00:00:01 08:00:27:00:00:02")
    for text in (move, moving.ask_script()):
        done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_what_the_scripts_do(tmp_path, shell):
    """Clients of that card alone are ended, and begun anew as they were, without being waited for."""
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    words = [shell, "sh"] if shell == "busybox" else [shell]
    guest = Guest(tmp_path)
    guest.add_card("eth0", "08:00:27:00:00:01")
    guest.add_card("eth1", "08:00:27:00:00:09")
    guest.add_process("udhcpc", "udhcpc", "-b", "-i", "eth0")
    guest.add_process("dhclient", "dhclient", "-6", "eth0")
    guest.add_process("udhcpc", "udhcpc", "-b", "-i", "eth1")
    guest.add_on_card("eth0.7", "08:00:27:00:00:01")
    guest.add_process("grep", "grep", "dhc", "eth0")
    move = moving.move_script(["08:00:27:00:00:01"], ["08:00:27:00:00:02"])
    guest.run(words, move, b"the program")
    assert guest.said == [
        "kill 100",
        "kill 101",
        "ip address flush dev eth0",
        "ip link set dev eth0 down",
        "ip link set dev eth0 address 08:00:27:00:00:02",
        "ip link set dev eth0 up",
    ]
    assert guest.card.read_bytes() == b"the program"
    began = time.monotonic()
    guest.run(words, moving.ask_script(), b"")
    assert time.monotonic() - began < guest.CLIENT_S
    wait_for(lambda: len(guest.said) == 8, Deadline(20), what="the clients to begin")
    assert sorted(guest.said[6:]) == ["dhclient -6 eth0", "udhcpc -b -i eth0"]


def test_a_card_that_is_not_there(tmp_path):
    """The script says so."""
    guest = Guest(tmp_path)
    guest.add_card("eth0", "08:00:27:00:00:01")
    move = moving.move_script(["08:00:27:00:00:05"], ["08:00:27:00:00:02"])
    with pytest.raises(subprocess.CalledProcessError) as caught:
        guest.run(["sh"], move, b"")
    assert caught.value.stderr == b"no network card has the address 08:00:27:00:00:05\n"


# --- the program -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((), 2),
        (("lo",), 2),
        (("lo", "080027000001", "x"), 2),
        (("much-too-long-for-a-card", "080027000001"), 2),
        (("lo", "080027000001"), 1),
        (("no-such-card", "080027000001"), 1),
    ],
)
def test_what_the_program_refuses(tmp_path, arguments, status):
    """Wrong arguments, and cards that have no EEPROM."""
    path = tmp_path / "card"
    path.write_bytes(moving.program())
    path.chmod(0o755)
    assert subprocess.run([path, *arguments], timeout=10, check=False).returncode == status


def test_the_program_is_what_its_source_says(tmp_path):
    """Assembled and linked as the source says, it is the file that is shipped."""
    if not (shutil.which("as") and shutil.which("ld")):
        pytest.skip("needs GNU binutils")
    source = Path(moving.__file__).with_name("card.S")
    for command in re.findall(r"^#   ((?:as|ld) .*)$", source.read_text(), re.MULTILINE):
        subprocess.run(
            ["sh", "-c", command.replace("card.S", str(source))], cwd=tmp_path, check=True, timeout=60
        )
    assert (tmp_path / "card.bin").read_bytes() == moving.program()
