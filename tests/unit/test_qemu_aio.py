"""How disk files are read and written, by the real qemu-img and others that refuse."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers.qemu import aio
from pytest_vmfest.drivers.qemu.aio import choose_aio


@pytest.fixture
def program(tmp_path):
    """Makes a program that notes how it was called, and ends as it is told."""

    def make(status=0, complaint=""):
        path = tmp_path / "qemu-img"
        path.write_text(
            "#!/bin/sh\nfor file; do :; done\n"
            f'echo "$@ $(readlink "$file")" > {tmp_path}/called\nprintf "{complaint}" >&2\nexit {status}\n'
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def kernel(monkeypatch):
    """Says which kernel this is."""
    return lambda release: monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))


def test_where_it_works(program, tmp_path, kernel):
    """QEMU has read a file in the folder that way, which is gone then."""
    kernel("6.1.0-44-amd64")
    assert choose_aio(program(), tmp_path / "new") == "io_uring"
    called = (tmp_path / "called").read_text()
    assert "io_uring" in called
    assert f"{tmp_path}/new/" in called
    assert list((tmp_path / "new").iterdir()) == []


def test_where_it_does_not(program, tmp_path, kernel):
    """QEMU refuses, or complains and goes on in another way, or cannot be asked."""
    kernel("6.1.0-44-amd64")
    assert choose_aio(program(status=1), tmp_path) == "threads"
    assert choose_aio(program(complaint="falling back"), tmp_path) == "threads"
    assert choose_aio(str(tmp_path / "nothing"), tmp_path) == "threads"
    (tmp_path / "file").touch()
    assert choose_aio(program(), tmp_path / "file" / "folder") == "threads"


def test_a_program_that_hangs(tmp_path, kernel, monkeypatch):
    """It is not waited for long."""
    kernel("6.1.0-44-amd64")
    monkeypatch.setattr(aio, "_TIMEOUT_S", 0.2)
    path = tmp_path / "qemu-img"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    assert choose_aio(str(path), tmp_path) == "threads"


def test_an_old_kernel(program, tmp_path, kernel):
    """There several machines at once might lack memory for it."""
    kernel("5.10.0-36-amd64")
    assert choose_aio(program(), tmp_path) == "threads"
    assert not (tmp_path / "called").exists()


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_the_real_program(tmp_path, kernel, monkeypatch):
    """It knows the options and reads the file: io_uring is all that it can refuse."""
    kernel("6.1.0-44-amd64")
    done = []
    run = subprocess.run

    def note(*arguments, **options):
        done.append(run(*arguments, **options))
        return done[-1]

    monkeypatch.setattr(aio.subprocess, "run", note)
    found = choose_aio("qemu-img", tmp_path)
    assert found == "io_uring" or b"io_uring" in done[0].stderr
    assert (b"Run completed" in done[0].stdout) is (found == "io_uring")
