"""A real OpenSSH server and a connection to it, for the tests of the SSH layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ssh_server import OpenSsh

from pytest_vmfest.ssh import ensure_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vmfest.specs import Identity
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
