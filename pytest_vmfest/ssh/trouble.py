"""Where the SSH library's errors become ours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from paramiko import AuthenticationException, ChannelException, SFTPError, SSHException
from paramiko.ssh_exception import IncompatiblePeer

from pytest_vmfest.errors import ConnectionLostError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vmfest.specs import Endpoint
    from pytest_vmfest.ssh.protocol import GuestTransport

_REBOOTED = "the guest may have crashed, rebooted or cut its network; its console tells"


# How the library says that the server went away during the key exchange; it has no type of its own for that.
_WENT_AWAY = ("Error reading SSH protocol banner", "Negotiation failed", "No existing session")


class DroppedError(Exception):
    """The server closed the connection before the login was decided, as one that still starts may do.

    Inside this package only: it is tried again.
    """


@contextlib.contextmanager
def login_errors(endpoint: Endpoint) -> Iterator[None]:
    """Raise the library's errors during a login as ours if they are final, as `DroppedError` if not."""
    try:
        yield
    except IncompatiblePeer as error:
        raise RemoteError(f"{endpoint}: no SSH session is possible: {error}") from error
    except (AuthenticationException, EOFError, OSError) as error:
        # A login that was refused is an AuthenticationError of ours already: the guest stayed to tell.
        raise DroppedError(reason(error)) from error
    except SSHException as error:
        if str(error).startswith(_WENT_AWAY):
            raise DroppedError(reason(None)) from error
        raise RemoteError(f"{endpoint}: the SSH key exchange failed: {error}") from error


@contextlib.contextmanager
def translated(transport: GuestTransport, what: str) -> Iterator[None]:
    """Raise every error of the library's in the block as ours; ``what`` says what failed thereby."""
    try:
        yield
    except (SSHException, SFTPError, EOFError, OSError) as error:
        if broken(transport):
            raise lost(what, error) from error
        if isinstance(error, ChannelException):
            raise RemoteError(
                f"{what}: the guest opens no further session: {error.text}",
                hint="commands that were given up may still run there; sshd allows ten at once (MaxSessions)",
            ) from error
        raise RemoteError(f"{what}: {reason(error)}") from error


def broken(transport: GuestTransport) -> bool:
    """Whether an error just now came from the whole connection, and not just from one session on it."""
    # A dying connection ends its sessions first, and says only a moment later that it is dead itself.
    transport.join(0.2)
    return not transport.is_active()


def lost(what: str, error: BaseException | None = None, *, more: str = "") -> ConnectionLostError:
    """The error for a connection that broke while it was needed for ``what``."""
    return ConnectionLostError(f"{what}: the connection broke: {reason(error)}{more}", hint=_REBOOTED)


def reason(error: BaseException | None) -> str:
    """``error`` in words."""
    if error is None or isinstance(error, EOFError):
        return "the guest closed it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
