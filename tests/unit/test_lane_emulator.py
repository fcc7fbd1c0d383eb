"""The provider of a QEMU in which VirtualBox runs, as far as it needs no mirror."""

import subprocess
from pathlib import Path

import pytest

from pytest_vmfest.images.recipes.apt import Mirrors
from tests.lane import emulator


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A PATH with a folder of its own; the programs put there tell a version."""
    place = tmp_path / "host"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))
    return place


def put(folder, version, *programs):
    """Programs that tell a version."""
    for program in programs or ("qemu-system-x86_64", "qemu-img"):
        (folder / program).write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
        (folder / program).chmod(0o755)


def pretend_to_fetch(monkeypatch):
    """Instead of fetching QEMU, make its folder; returns how often it was made, as a list."""
    made = []

    def fetch(tree, work, progress):
        made.append(work)
        (tree / "bin").mkdir(parents=True)

    monkeypatch.setattr(emulator, "_fetch", fetch)
    return made


def test_the_hosts_own_qemu_is_taken(folder, tmp_path):
    """A host whose QEMU is new enough needs nothing else, and nothing is written."""
    put(folder, "11.0.1")
    assert emulator.emulator(tmp_path / "home") == folder
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("version", ["7.2.22", "10.2.0", None])
def test_an_older_one_or_none_is_not(folder, tmp_path, monkeypatch, version):
    """Another is made then, once for a store; of the making nothing stays but the result."""
    if version:
        put(folder, version)
    made = pretend_to_fetch(monkeypatch)
    home = tmp_path / "home"
    bin_folder = emulator.emulator(home)
    assert bin_folder == emulator.emulator(home)
    assert bin_folder.is_dir()
    assert bin_folder.is_relative_to(home / "cache")
    assert len(made) == 1
    assert not made[0].exists()


def test_a_failure_leaves_nothing(folder, tmp_path, monkeypatch):
    """What was fetched by half is not taken for the whole the next time."""
    made = pretend_to_fetch(monkeypatch)
    fetch = emulator._fetch

    def fail(tree, work, progress):
        fetch(tree, work, progress)
        raise OSError("no space")

    monkeypatch.setattr(emulator, "_fetch", fail)
    with pytest.raises(OSError, match="no space"):
        emulator.emulator(tmp_path)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    monkeypatch.setattr(emulator, "_fetch", fetch)
    assert emulator.emulator(tmp_path).is_dir()
    assert len(made) == 2


def test_the_wrapper(tmp_path):
    """It runs the program by the loader beside it, called by its name, wherever the folder is moved to."""
    place = tmp_path / "a place"
    for name in ("bin", "loader"):
        (place / name).mkdir(parents=True)
    script = place / "bin/qemu-system-x86_64"
    script.write_text(emulator.wrapper("qemu-system-x86_64", ("-L", "usr/share/qemu")))
    loader = place / "loader/qemu-system-x86_64"
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    for program in (script, loader):
        program.chmod(0o755)
    done = subprocess.run([script, "-m", "1 2"], capture_output=True, text=True, check=True)
    said = [line.replace(f"{place}/bin/..", "HERE") for line in done.stdout.splitlines()]
    assert said[:2] == ["--argv0", "qemu-system-x86_64"]
    assert said[2:5] == [
        "--library-path",
        "HERE/usr/lib/x86_64-linux-gnu",
        "HERE/usr/bin/qemu-system-x86_64",
    ]
    assert said[5:] == ["-L", "HERE/usr/share/qemu", "-m", "1 2"]


def test_unstable_comes_from_the_hosts_mirror(monkeypatch):
    """It is signed by Debian's keys, which a host that is not Debian itself may have elsewhere."""
    monkeypatch.setattr(emulator, "_KEYRING", Path("/nonexistent"))
    assert emulator.sources(Mirrors("http://archive", None)) == ["deb http://archive sid main"]
    monkeypatch.setattr(emulator, "_KEYRING", Path("/dev/null"))
    assert emulator.sources(Mirrors("http://archive", None)) == [
        "deb [signed-by=/dev/null] http://archive sid main"
    ]
