"""What the tests of several modules need: a real OpenSSH server, and disks in all formats."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from ssh_server import OpenSsh

from pytest_vmfest.specs import DISK_FORMATS, ImageModel
from pytest_vmfest.ssh import ensure_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_vmfest.specs import DiskFormat, Identity
    from pytest_vmfest.ssh.connection import SshRemote


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The keys of a store."""
    return ensure_identity(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def openssh(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[OpenSsh]:
    """A real server."""
    with OpenSsh(tmp_path_factory.mktemp("ssh") / "sshd", identity) as server:
        yield server


@pytest.fixture
def remote(openssh: OpenSsh) -> Iterator[SshRemote]:
    """A connection to it."""
    remote = openssh.connect()
    yield remote
    remote.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One disk in every format, half of it filled with what cannot be compressed; by the real qemu-img."""
    folder = tmp_path_factory.mktemp("images")
    raw = folder / "disk.raw"
    raw.write_bytes(os.urandom(4 << 20) + bytes(4 << 20))
    for kind in DISK_FORMATS:
        if kind != "raw":
            subprocess.run(["qemu-img", "convert", "-O", kind, raw, folder / f"disk.{kind}"], check=True)
    return folder


@pytest.fixture
def model() -> Callable[[Path, DiskFormat], ImageModel]:
    """Makes the model of a disk."""
    return lambda disk, kind: ImageModel("thing", disk, kind)
