"""How disk files are read and written, by the real qemu-img and others that refuse."""

import os
import shutil
from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers.qemu.aio import choose_aio


@pytest.fixture
def program(tmp_path):
    """Makes a program that notes how it was called, and ends as it is told."""

    def make(status):
        path = tmp_path / "qemu-img"
        path.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nexit {status}\n')
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def kernel(monkeypatch):
    """Says which kernel this is."""
    return lambda release: monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))


def test_where_it_works(program, tmp_path, kernel):
    """QEMU has opened a file that way."""
    kernel("6.1.0-44-amd64")
    assert choose_aio(program(0)) == "io_uring"
    assert "io_uring" in (tmp_path / "called").read_text()


def test_where_it_does_not(program, tmp_path, kernel):
    """QEMU refuses, or cannot be asked."""
    kernel("6.1.0-44-amd64")
    assert choose_aio(program(1)) == "threads"
    assert choose_aio(str(tmp_path / "nothing")) == "threads"


def test_an_old_kernel(program, tmp_path, kernel):
    """There several machines at once might lack memory for it."""
    kernel("5.10.0-36-amd64")
    assert choose_aio(program(0)) == "threads"
    assert not (tmp_path / "called").exists()


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
def test_the_real_program(monkeypatch):
    """It knows the file's name and options: io_uring is all that it can refuse."""
    from pytest_vmfest.drivers.qemu import aio

    said = []
    run = aio.subprocess.run
    monkeypatch.setattr(aio.subprocess, "run", lambda *a, **k: said.append(run(*a, **k)) or said[-1])
    if choose_aio("qemu-img") == "threads" and said:
        assert b"io_uring" in said[-1].stderr
