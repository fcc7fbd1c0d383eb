"""In the guest: a pytest plugin that notes each SSH login, one address a line, in the file LANE_LOGINS.

Loaded by PYTEST_PLUGINS, it is also in every pytest that a test runs.
"""

from __future__ import annotations

import functools
import os

import pytest


@functools.cache
def note_logins() -> None:
    """Note, from now on, each login of this process that succeeds."""
    import paramiko

    def noting(login):  # type: ignore[no-untyped-def]
        @functools.wraps(login)
        def noted(self: paramiko.Transport, *arguments: object, **options: object) -> object:
            answer = login(self, *arguments, **options)
            if self.is_authenticated():
                # What the project gives to paramiko for a socket does not tell of the other side.
                sock = getattr(self.sock, "_socket", self.sock)
                _note(sock.getpeername()[0])
            return answer

        return noted

    for name in ("auth_publickey", "auth_password", "auth_none"):
        setattr(paramiko.Transport, name, noting(getattr(paramiko.Transport, name)))


def pytest_configure(config: pytest.Config) -> None:
    """Begin where the lane asks for it."""
    if "LANE_LOGINS" in os.environ:
        note_logins()


def _note(address: str) -> None:
    # One write, which no other process's can come into.
    with open(os.environ["LANE_LOGINS"], "a") as file:  # noqa: PTH123 - pathlib has no append
        file.write(f"{address}\n")
