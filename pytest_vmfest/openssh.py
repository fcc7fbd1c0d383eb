"""How to enter a guest with OpenSSH's client, which people have in their terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vmfest.specs import Endpoint, Login


def ssh_words(endpoint: Endpoint, login: Login) -> list[str]:
    """The words of an ``ssh`` command into the guest at ``endpoint``; a remote command may be added.

    The host key is verified when it is known (``KnownHostsCommand`` came with OpenSSH 8.5). The user's
    own configuration is left out: a connection that it shares (``ControlMaster``) would lead into the machine
    that had this port before.
    """
    words = ["ssh", "-F", "none", "-p", str(endpoint.port), "-o", "UserKnownHostsFile=/dev/null"]
    words += ["-o", "LogLevel=ERROR"]
    if login.host_key:
        # The usual port is not part of a host's name there.
        host = endpoint.host if endpoint.port == 22 else f"[{endpoint.host}]:{endpoint.port}"
        known = f"{host} {login.host_key}"
        words += ["-o", "StrictHostKeyChecking=yes", "-o", f"KnownHostsCommand=/bin/echo {known}"]
    else:
        words += ["-o", "StrictHostKeyChecking=no"]
    if login.private_key:
        words += ["-o", "IdentitiesOnly=yes", "-i", str(login.private_key)]
    return [*words, f"{login.username}@{endpoint.host}"]
