"""Logging in: keys, passwords, host keys, refusals, servers that give up half-way."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import paramiko
import pytest
from ssh_server import OpenSsh, ParamikoServer, Server, make_key, needs_sshd, serving

from pytest_vmfest.errors import (
    AuthenticationError,
    ConfigurationError,
    HostKeyError,
    RemoteError,
    WaitTimeoutError,
)
from pytest_vmfest.specs import Identity, Login
from pytest_vmfest.ssh import connect, ensure_identity
from pytest_vmfest.ssh.protocol import GuestTransport
from pytest_vmfest.ssh.wire import Wire
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BANNER = b"SSH-2.0-OpenSSH_9.2\r\n"


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The keys of a store."""
    return ensure_identity(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def openssh(tmp_path: Path, identity: Identity) -> Iterator[OpenSsh]:
    """A real server that the identity may log into."""
    with OpenSsh(tmp_path / "sshd", identity) as server:
        yield server


@pytest.fixture(scope="module")
def host_key(tmp_path_factory: pytest.TempPathFactory) -> paramiko.PKey:
    """A host key for servers of paramiko's."""
    return make_key(tmp_path_factory.mktemp("host") / "key")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Every test leaves as many threads as it found."""
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not set(threading.enumerate()) - before, Deadline(5), what="the end of all threads")


def _log_in(server: Server, login: Login, timeout_s: float = 20) -> list[str]:
    """Log in and out again; the stages on the way."""
    stages: list[str] = []
    connect(server.endpoint, login, Deadline(timeout_s), on_stage=stages.append).close()
    return stages


@needs_sshd
def test_the_identity_opens_a_real_sshd(openssh: OpenSsh) -> None:
    """The store's key logs in, the host's is recognised, each stage is told once."""
    assert _log_in(openssh, openssh.login) == ["port", "banner", "login"]


@needs_sshd
def test_quick_algorithms(openssh: OpenSsh) -> None:
    """With a real sshd, the key exchange is curve25519 and nothing is compressed."""
    remote = openssh.connect()
    transport = remote._transport
    remote.close()

    assert transport.get_security_options().kex[0].startswith("curve25519-sha256")
    assert not [name for name in transport.get_security_options().kex if "mlkem" in name or "sntrup" in name]
    assert transport.local_compression == "none"
    assert transport.local_cipher.startswith("aes128-")


@needs_sshd
def test_no_keys_of_the_user(openssh: OpenSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in ``~/.ssh`` that would be let in is not used."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key = openssh.login.private_key
    assert key is not None
    (home / ".ssh" / "id_ed25519").write_bytes(key.read_bytes())
    monkeypatch.setenv("HOME", str(home))

    with pytest.raises(AuthenticationError):
        _log_in(openssh, replace(openssh.login, private_key=None))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa", "pem"])
def test_every_usual_kind_of_key(tmp_path: Path, host_key: paramiko.PKey, kind: str) -> None:
    """Ed25519, ECDSA and RSA log in, RSA also from the older file format."""
    with ParamikoServer(host_key, authorized=make_key(tmp_path / "key", kind)) as server:
        _log_in(server, Login("vagrant", private_key=tmp_path / "key", host_key=server.host_key))
        assert server.tried == ["publickey"]


@pytest.mark.parametrize(("interactive", "tried"), [(False, ["password"]), (True, ["keyboard-interactive"])])
def test_passwords(host_key: paramiko.PKey, interactive: bool, tried: list[str]) -> None:
    """A password is also given to a server that asks for it interactively."""
    with ParamikoServer(host_key, password="päss word", interactive=interactive) as server:
        _log_in(server, Login("vagrant", password="päss word", host_key=server.host_key))
        assert server.tried[-1:] == tried


def test_a_password_helps_where_a_key_does_not(tmp_path: Path, host_key: paramiko.PKey) -> None:
    """A login that has both tries the key, then the password."""
    make_key(tmp_path / "key")
    with ParamikoServer(host_key, password="secret") as server:
        _log_in(server, Login("root", password="secret", private_key=tmp_path / "key"))
        assert server.tried == ["publickey", "password"]


def test_a_refused_login_is_final(tmp_path: Path, host_key: paramiko.PKey) -> None:
    """The error names user, endpoint and what was tried; nothing is tried again."""
    make_key(tmp_path / "key")
    with ParamikoServer(host_key, password="right") as server:
        with pytest.raises(AuthenticationError) as caught:
            _log_in(server, Login("admin", password="wrong", private_key=tmp_path / "key"))
        assert f"admin@{server.endpoint}" in caught.value.message
        assert f"the key {tmp_path / 'key'} and by password" in caught.value.message
        assert "wrong" not in str(caught.value)
        assert caught.value.hint
        assert server.connections == 1


@needs_sshd
def test_a_way_that_the_guest_does_not_offer(openssh: OpenSsh) -> None:
    """When the guest wants another way of logging in, the error says which."""
    with pytest.raises(AuthenticationError, match=r"by password; it asks for publickey"):
        _log_in(openssh, Login(openssh.login.username, password="secret"))


def test_another_host_key(tmp_path: Path, host_key: paramiko.PKey) -> None:
    """A host with another key than the known one gets no login; the error shows both fingerprints."""
    other = make_key(tmp_path / "other")
    assert other is not None
    with ParamikoServer(host_key, password="secret") as server:
        with pytest.raises(HostKeyError) as caught:
            _log_in(server, Login(password="secret", host_key=f"ssh-ed25519 {other.get_base64()} comment"))
        for key in (host_key, other):
            digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
            assert f"SHA256:{digest} (ssh-ed25519)" in caught.value.message
        assert str(server.endpoint) in caught.value.message
        assert server.tried == []
        assert server.connections == 1


def test_a_host_key_of_another_type_is_a_wrong_one(tmp_path: Path, host_key: paramiko.PKey) -> None:
    """A host that has no key of the known type is told apart by its key, not by failing algorithms."""
    known = make_key(tmp_path / "rsa", "rsa")
    with ParamikoServer(host_key, password="secret") as server:
        with pytest.raises(HostKeyError, match=r"\(ssh-ed25519\).*\(ssh-rsa\)"):
            _log_in(server, Login(password="secret", host_key=f"ssh-rsa {known.get_base64()}"))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_the_known_type_of_host_key_is_asked_for(tmp_path: Path, host_key: paramiko.PKey, kind: str) -> None:
    """Of a host's several keys the known one is compared."""
    known = make_key(tmp_path / "known", kind)
    with ParamikoServer(host_key, known, password="secret") as server:
        _log_in(server, Login(password="secret", host_key=f"{known.get_name()} {known.get_base64()}"))


def test_without_a_known_host_key_the_first_is_trusted(host_key: paramiko.PKey) -> None:
    """Images from elsewhere come without a known host key."""
    with ParamikoServer(host_key, password="secret") as server:
        _log_in(server, Login(password="secret", host_key=None))


@pytest.mark.parametrize("line", ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAA"])
def test_a_malformed_host_key_is_found_before_connecting(line: str) -> None:
    """A host key that is none is an error of configuration."""
    with serving(lambda sock: None) as server:
        with pytest.raises(ConfigurationError, match="no OpenSSH public key"):
            _log_in(server, Login(host_key=line))
        assert server.connections == 0


def test_unusable_private_keys_are_found_before_connecting(tmp_path: Path) -> None:
    """A missing, encrypted or broken private key is named before anything is connected."""
    make_key(tmp_path / "encrypted", passphrase=b"secret")
    make_key(tmp_path / "encrypted.pem", "pem", passphrase=b"secret")
    (tmp_path / "broken").write_text("no key at all")
    with serving(lambda sock: None) as server:
        for name, why in (
            ("missing", "cannot be read: No such file"),
            ("encrypted", "is encrypted"),
            ("encrypted.pem", "is encrypted"),
            ("broken", "cannot be used"),
        ):
            with pytest.raises(ConfigurationError, match=f"{tmp_path / name} {why}"):
                _log_in(server, Login(private_key=tmp_path / name))
        assert server.connections == 0


@needs_sshd
def test_a_server_that_drops_the_first_logins(tmp_path: Path, identity: Identity) -> None:
    """A server that hangs up after its banner, as one that still starts may do, is asked again."""
    drops = iter(range(2))

    def drop(sock: socket.socket) -> None:
        if next(drops, None) is not None:
            sock.sendall(BANNER)
            raise EOFError

    with OpenSsh(tmp_path / "sshd", identity, before=drop) as server:
        assert _log_in(server, server.login) == ["port", "banner", "login"]
        assert server.connections == 3


@pytest.mark.parametrize("serve", [lambda sock: sock.recv(1024), lambda sock: None], ids=["late", "at once"])
def test_a_server_that_always_drops_the_login(serve: object) -> None:
    """When every login is cut off, the error past the deadline says that, and what happened last."""

    def drop(sock: socket.socket) -> None:
        sock.sendall(BANNER)
        serve(sock)

    with serving(drop) as server:
        with pytest.raises(WaitTimeoutError, match=rf"{server.endpoint}.*cut off.*0.5 s.*(closed|reset)"):
            _log_in(server, Login("root", password="x"), 0.5)
        assert server.connections > 1


def test_a_server_that_stalls_after_its_banner() -> None:
    """A login that is not answered ends with the deadline, at the stage of the login."""
    stages: list[str] = []

    def stall(sock: socket.socket) -> None:
        sock.sendall(BANNER)
        while sock.recv(4096):
            pass

    with serving(stall) as server:
        started = time.monotonic()
        with pytest.raises(WaitTimeoutError, match=rf"{server.endpoint}.*login as admin.*0.3 s"):
            connect(server.endpoint, Login("admin"), Deadline(0.3), on_stage=stages.append)
        assert time.monotonic() - started < 3
    assert stages == ["port", "banner", "login"]


def test_watch_ends_a_login() -> None:
    """What ``watch`` raises while the login is under way comes through; the connection is closed."""

    class MachineDiedError(Exception):
        pass

    greeted, closed = threading.Event(), threading.Event()

    def stall(sock: socket.socket) -> None:
        sock.sendall(BANNER)
        while sock.recv(4096):
            greeted.set()
        closed.set()

    def watch() -> None:
        if greeted.is_set():
            raise MachineDiedError

    with serving(stall) as server:
        with pytest.raises(MachineDiedError):
            connect(server.endpoint, Login(), Deadline(20), watch=watch)
        assert closed.wait(5)


def test_no_common_algorithm(host_key: paramiko.PKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that speaks no algorithm of ours is an error at once, with the reason."""
    monkeypatch.setattr(paramiko.Transport, "_preferred_macs", ("hmac-md5",))
    monkeypatch.setattr(paramiko.Transport, "_preferred_ciphers", ("aes128-ctr",))
    original = GuestTransport.__init__

    def modern(self: GuestTransport, wire: Wire, **more: str | None) -> None:
        original(self, wire, **more)
        self.get_security_options().digests = ["hmac-sha2-512"]

    monkeypatch.setattr(GuestTransport, "__init__", modern)
    with ParamikoServer(host_key, password="secret") as server:
        with pytest.raises(RemoteError, match=rf"{server.endpoint}.*no acceptable macs"):
            _log_in(server, Login(password="secret"))
        assert server.connections == 1


def test_the_library_stays_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Connections that fail half-way leave nothing in logs or on the terminal: the error says it all."""

    def talk_nonsense(sock: socket.socket) -> None:
        sock.sendall(BANNER + b"\0\0\0\x05 nonsense")

    with caplog.at_level(logging.DEBUG), serving(talk_nonsense) as server:
        with pytest.raises((RemoteError, WaitTimeoutError)):
            _log_in(server, Login(), 0.5)

    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_is_cheap() -> None:
    """Neither paramiko nor cryptography is imported before it is needed."""
    script = (
        "import sys; import pytest_vmfest.ssh;"
        "print({'paramiko', 'cryptography', 'filelock'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )

    assert done.stdout == "set()\n"
