"""SSH into guests: keys, waiting until SSH answers, commands, files.

Importing this package is cheap: paramiko is imported with the first connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.ssh.keys import ensure_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.specs import Endpoint, Login
    from pytest_vmfest.ssh.connection import SshRemote
    from pytest_vmfest.waiting import Deadline

__all__ = ["connect", "ensure_identity"]


def connect(
    endpoint: Endpoint,
    login: Login,
    deadline: Deadline,
    *,
    watch: Callable[[], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> SshRemote:
    """Wait until SSH answers at ``endpoint``, and log in.

    ``watch`` is called about every 0.1 s and may raise, to end a wait that can no longer succeed; everything
    is closed then. ``on_stage`` is told what is waited for: ``"port"`` (nothing accepts connections yet),
    ``"banner"`` (something does, but does not speak SSH yet), ``"login"``; each once, in this order.

    The host key is compared with ``login.host_key``; if that is None, the first one is trusted. The login is
    by ``login.private_key``, then by ``login.password``; no other keys, agents or configuration are looked
    at. A guest that hangs up before it has decided, as one that still boots may, is asked again.

    Raises `WaitTimeoutError` when ``deadline`` passes, `AuthenticationError` when the guest refuses the
    login, `HostKeyError`, `ConfigurationError` when the private key cannot be used, and `RemoteError` when
    something else than SSH answers.
    """
    from pytest_vmfest.ssh import connection

    return connection.connect(endpoint, login, deadline, watch=watch, on_stage=on_stage)
