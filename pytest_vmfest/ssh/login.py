"""From a server's banner to an authenticated session: key exchange, host key, login."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from paramiko import AuthenticationException, BadAuthenticationType, PKey, SSHException
from paramiko.pkey import UnknownKeyType

from pytest_vmfest.errors import (
    AuthenticationError,
    ConfigurationError,
    HostKeyError,
    WaitTimeoutError,
)
from pytest_vmfest.ssh.background import Call
from pytest_vmfest.ssh.protocol import KEEPALIVE_S, GuestTransport
from pytest_vmfest.ssh.trouble import login_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_vmfest.specs import Endpoint, Login
    from pytest_vmfest.ssh.wire import Wire
    from pytest_vmfest.waiting import Deadline

_WATCH_S = 0.1


@dataclass(frozen=True)
class HostKey:
    """A public key of a host, as it goes over the wire."""

    type: str
    blob: bytes

    @classmethod
    def parse(cls, line: str) -> HostKey:
        """Read ``ssh-ed25519 AAAA… comment``."""
        try:
            kind, encoded, *_ = line.split()
            blob = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            kind, blob = "", b""
        name = kind.encode()
        if not name or not blob.startswith(len(name).to_bytes(4, "big") + name):
            raise ConfigurationError(
                f"the host key {line[:60]!r} is no OpenSSH public key",
                hint="give it as in a .pub file: 'ssh-ed25519 AAAA…'",
            )
        return cls(kind, blob)

    def __str__(self) -> str:
        """Fingerprint and type, as ``ssh-keygen -l`` prints them."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest} ({self.type})"


@dataclass(frozen=True)
class Credentials:
    """A `Login`, its files read."""

    login: Login
    key: PKey | None
    host_key: HostKey | None

    @classmethod
    def load(cls, login: Login) -> Credentials:
        """Read the private key and the host key; `ConfigurationError` if one is unusable."""
        return cls(
            login,
            None if login.private_key is None else _read_private_key(login.private_key),
            None if login.host_key is None else HostKey.parse(login.host_key),
        )


def _read_private_key(path: Path) -> PKey:
    try:
        return PKey.from_path(path)
    except OSError as error:
        raise ConfigurationError(f"the private key {path} cannot be read: {error.strerror}") from error
    except TypeError as error:  # "Password was not given but private key is encrypted"
        raise ConfigurationError(
            f"the private key {path} is encrypted",
            hint=f"nobody is there to type its passphrase: remove it with ssh-keygen -p -f {path}",
        ) from error
    except (SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError) as error:
        raise ConfigurationError(
            f"the private key {path} cannot be used: {error}", hint="give an ed25519, ECDSA or RSA key"
        ) from error


def log_in(
    wire: Wire,
    endpoint: Endpoint,
    credentials: Credentials,
    deadline: Deadline,
    watch: Callable[[], None] | None,
) -> GuestTransport:
    """Open a session on ``wire`` and log in.

    Raises `HostKeyError`, `AuthenticationError`, `RemoteError` when there is no common algorithm,
    `WaitTimeoutError`, `trouble.DroppedError`, and whatever ``watch`` raises; the wire is closed then.
    """
    known = credentials.host_key
    transport = GuestTransport(wire, known_key_type=known.type if known else None)
    try:
        call = Call(lambda: _negotiate(transport, endpoint, credentials))
        while not call.wait(min(_WATCH_S, deadline.remaining_s)):
            if watch is not None:
                watch()
            if deadline.expired:
                raise WaitTimeoutError(
                    f"{endpoint}: SSH answers, but the login as {credentials.login.username} "
                    f"did not end within {deadline.timeout_s:g} s"
                )
        with login_errors(endpoint):
            call.result()
    except BaseException:
        transport.shut()
        raise
    transport.set_keepalive(KEEPALIVE_S)
    return transport


def _negotiate(transport: GuestTransport, endpoint: Endpoint, credentials: Credentials) -> None:
    transport.start_client()
    _check_host_key(transport, endpoint, credentials.host_key)
    _authenticate(transport, endpoint, credentials)


def _check_host_key(transport: GuestTransport, endpoint: Endpoint, known: HostKey | None) -> None:
    key = transport.get_remote_server_key()
    presented = HostKey(key.get_name(), key.asbytes())
    if known is not None and presented != known:
        raise HostKeyError(
            f"{endpoint}: the guest presented the host key {presented}, but {known} was expected",
            hint="another machine answers there, or the image was built with the keys of another store",
        )


def _authenticate(transport: GuestTransport, endpoint: Endpoint, credentials: Credentials) -> None:
    """Try the ways that the login has, in turn; some guests ask for two of them."""
    login = credentials.login
    ways: dict[str, Callable[[], list[str]]] = {}
    if credentials.key is not None:
        key = credentials.key
        ways[f"the key {login.private_key}"] = lambda: transport.auth_publickey(login.username, key)
    if login.password is not None:
        password = login.password
        ways["password"] = lambda: transport.auth_password(login.username, password)
    if not ways:
        ways["no key and no password"] = lambda: transport.auth_none(login.username)
    allowed: list[str] = []
    for way in ways.values():
        try:
            allowed = way()
        except AuthenticationException as error:
            if not transport.is_active():
                raise
            if isinstance(error, BadAuthenticationType):
                allowed = error.allowed_types
        else:
            if not allowed:
                return
    says = f"; it asks for {' or '.join(allowed)}" if allowed else ""
    raise AuthenticationError(
        f"{login.username}@{endpoint}: the guest refused the login by {' and by '.join(ways)}{says}",
        hint="check the image's user name, key and password; /var/log/auth.log in the guest tells more",
    )
