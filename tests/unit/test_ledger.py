"""Ledgers: what is written down survives, torn lines do not matter, and locks tell who lives."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pytest_vmfest.errors import StoreError
from pytest_vmfest.ledger import Kind, Ledger, MemoryLedger, Owner
from pytest_vmfest.processes import Process

OWNER = Owner(
    driver="qemu",
    settings={"home": "/store", "qemu": None},
    tags={"run": "r1", "worker": "gw0"},
    process=Process.of(os.getpid()),
    parent=Process.of(os.getppid()),
)


@pytest.fixture(params=["file", "memory"])
def ledger(request, tmp_path):
    """A ledger of each kind."""
    return Ledger.begin(tmp_path, OWNER) if request.param == "file" else MemoryLedger(OWNER)


def test_what_is_added_is_there_until_it_is_crossed_out(ledger):
    """Machines and networks by name, in their order; crossing out what is not there is fine."""
    assert not ledger.entries()
    ledger.add(Kind.MACHINE, "b")
    ledger.add(Kind.MACHINE, "a")
    ledger.add(Kind.NETWORK, "a")
    ledger.cross_out(Kind.MACHINE, "b")
    ledger.cross_out(Kind.MACHINE, "never there")
    entries = ledger.entries()
    assert (list(entries.machines), list(entries.networks)) == (["a"], ["a"])
    ledger.cross_out(Kind.NETWORK, "a")
    ledger.cross_out(Kind.MACHINE, "a")
    assert not ledger.entries()


def test_machines_are_kept_until_a_time(ledger):
    """Only those that are there can be kept; when they go, that goes too."""
    ledger.add(Kind.MACHINE, "a")
    ledger.keep("a", 12.5)
    ledger.keep("b", 12.5)
    assert ledger.entries().kept == {"a": 12.5}
    ledger.cross_out(Kind.MACHINE, "a")
    ledger.add(Kind.MACHINE, "a")
    assert ledger.entries().kept == {}


def test_its_owner_is_read_back(ledger):
    """All of it, from whatever object stands for the same file."""
    assert ledger.owner() == OWNER


def test_it_is_private_and_found_again(tmp_path):
    """The name tells the run; nobody else may read it; removed, it is not there any more."""
    ledger = Ledger.begin(tmp_path, OWNER)
    assert ledger.path.name.startswith("r1-gw0-qemu-")
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700
    assert [found.path for found in Ledger.all(tmp_path)] == [ledger.path]
    ledger.remove()
    ledger.remove()
    assert Ledger.all(tmp_path) == []
    assert ledger.owner() is None
    assert not ledger.entries()


def test_a_torn_line_is_left_out(tmp_path):
    """After a power cut, whole lines count, and new ones can follow."""
    ledger = Ledger.begin(tmp_path, OWNER)
    ledger.add(Kind.MACHINE, "a")
    with ledger.path.open("a") as file:
        file.write('\n{"gone": "machine", "na')
    assert list(ledger.entries().machines) == ["a"]
    ledger.add(Kind.MACHINE, "b")
    assert list(ledger.entries().machines) == ["a", "b"]
    assert ledger.owner() == OWNER


@pytest.mark.parametrize(
    "text", [b"", b'{"driver": "qe', b'{"another": "file"}\n', b"[1]\n", b"\x00\x00", b"\xff\xfe\n"]
)
def test_without_its_first_line_it_has_no_owner(tmp_path, text):
    """Nothing can have been made then."""
    ledger = Ledger.begin(tmp_path, OWNER)
    ledger.path.write_bytes(text)
    assert ledger.owner() is None
    assert not ledger.entries()


def test_one_at_a_time_has_the_lock(tmp_path):
    """Another process cannot take it, until its holder has ended; one that is removed cannot be locked."""
    ledger = Ledger.begin(tmp_path, OWNER)
    code = (
        "import pathlib, sys; from pytest_vmfest.ledger import Ledger;"
        f"print(Ledger(pathlib.Path({str(ledger.path)!r})).lock(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() != "None\n"
        assert ledger.lock() is None
        other.kill()
    lock = ledger.lock()
    assert lock is not None
    os.close(lock)
    ledger.remove()
    assert ledger.lock() is None


def no_space(*arguments):
    """What a full disk answers."""
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    """Nothing that is not written down may be made, so the error is raised."""
    ledger = Ledger.begin(tmp_path, OWNER)
    monkeypatch.setattr(os, "write", no_space)
    with pytest.raises(StoreError, match="No space left"):
        ledger.add(Kind.MACHINE, "a")


def test_a_ledger_that_cannot_be_begun_is_not_there(tmp_path, monkeypatch):
    """On a full disk a file can still be made, but nothing be written to it."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", no_space)
        with pytest.raises(StoreError, match="No space left"):
            Ledger.begin(tmp_path, OWNER)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_disk_that_takes_half_a_line_is_full(tmp_path, monkeypatch):
    """Half a line counts as nothing, and is told as the full disk that it is; the next line is whole."""
    ledger = Ledger.begin(tmp_path, OWNER)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, data: write(handle, data[:12]))
        with pytest.raises(StoreError, match=r"(?s)No space left.*free some space"):
            ledger.add(Kind.MACHINE, "a")
    ledger.add(Kind.MACHINE, "b")
    assert list(ledger.entries().machines) == ["b"]


def test_lines_of_another_shape_are_left_out(ledger):
    """As another version may write them, or nobody."""
    ledger.add(Kind.MACHINE, "a")
    for event in (
        {"keep": "a"},
        {"keep": ["a"], "until": 1},
        {"add": "machine"},
        {"add": "machine", "name": "b", "memory_mib": "much"},
        {"gone": "machine", "name": ["a"]},
        {"news": 1},
    ):
        ledger._append(event)
    entries = ledger.entries()
    assert (list(entries.machines), entries.kept) == (["a"], {})


def test_an_owner_of_another_version(tmp_path):
    """What that has added does not matter."""
    ledger = Ledger.begin(tmp_path, OWNER)
    text = ledger.path.read_text()
    ledger.path.write_text(
        text.replace('"driver"', '"color": "blue", "driver"').replace('"pid"', '"x": 1, "pid"')
    )
    assert ledger.owner() == OWNER


def test_tags_become_plain_file_names(tmp_path):
    """Whatever they are, the ledger stands in its folder and is found."""
    ledger = Ledger.begin(tmp_path, replace(OWNER, tags={"run": "../feature/[x]*", "worker": "w" * 300}))
    assert [found.path for found in Ledger.all(tmp_path)] == [ledger.path]
    shared = Ledger.shared(tmp_path, "../[x]*", "qemu")
    shared.join(OWNER)
    assert [found.path for found in Ledger.all_shared(tmp_path, "../[x]*")] == [shared.path]
    assert shared.join(replace(OWNER, driver="another")) == OWNER


def test_a_lock_is_given_back_though_a_child_has_it_too(tmp_path):
    """A child that was forked meanwhile inherits the descriptor."""
    ledger = Ledger.begin(tmp_path, OWNER)
    lock = ledger.lock()
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock]) as child:
        Ledger.unlock(lock)
        again = ledger.lock()
        assert again is not None
        Ledger.unlock(again)
        child.kill()


def test_a_lock_of_one_that_was_removed_and_begun_anew(tmp_path):
    """Shared ones have names that come again: the lock is the present one's."""
    shared = Ledger.shared(tmp_path, "r1", "qemu")
    shared.join(OWNER)
    old = shared.lock()
    assert old is not None
    shared.remove()
    shared.join(OWNER)
    new = shared.lock()
    assert new is not None
    Ledger.unlock(old)
    Ledger.unlock(new)
