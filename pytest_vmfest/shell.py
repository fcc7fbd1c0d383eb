"""Composing the shell text that a node runs: quoting, working directory, environment, another user."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_vmfest.specs import Login

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Script:
    """Shell text, and what has to be written to its standard input before the caller's own input."""

    text: str
    input_prefix: bytes = b""


def command_text(command: str | Sequence[str]) -> str:
    """A shell string as it is; an argument list quoted.

    >>> command_text(["echo", "two words"])
    "echo 'two words'"
    """
    if isinstance(command, str):
        return command
    if not command:
        raise ConfigurationError("an empty argument list is no command")
    return shlex.join(str(argument) for argument in command)


def compose(
    command: str | Sequence[str],
    login: Login,
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Script:
    """The script that runs ``command`` as ``user``, in ``cwd``, with ``env`` added.

    From root, another user is reached by ``su``, from any other login by ``sudo``. Raises
    `ConfigurationError` for a variable name that no shell takes, and if the image says that it has no sudo.
    """
    text = _in_place(command_text(command), env or {}, cwd)
    if user is None or user == login.username:
        return Script(text)
    if login.username == "root":
        return Script(f"su -s /bin/sh {shlex.quote(user)} -c {shlex.quote(text)}")
    if login.no_sudo:
        raise ConfigurationError(
            f"cannot run as {user!r}: the image's user {login.username!r} has no sudo",
            hint="log in as that user, or install sudo in the image and drop no_sudo from its metadata",
        )
    target = f"-H -u {shlex.quote(user)} -- /bin/sh -c {shlex.quote(text)}"
    if login.sudo_password is None:
        return Script(f"sudo -n {target}")
    # -k: always ask, so that the password line is always consumed and never reaches the command.
    return Script(f"sudo -k -S -p '' {target}", input_prefix=login.sudo_password.encode() + b"\n")


def find_card(mac: str) -> list[str]:
    """Lines of a POSIX shell script that set ``$dev`` to the network card with an address, or to nothing.

    What stands on a card, such as a VLAN or a bridge, may have the same address. ``mac`` may be the shell's
    word for it. No program is started.
    """
    return [
        "dev=",
        "for path in /sys/class/net/*; do",
        '  [ -e "$path/device" ] || continue',
        '  { read -r address < "$path/address"; } 2> /dev/null || continue',
        f'  [ "$address" = {mac} ] && dev=${{path##*/}}',
        "done",
    ]


def _in_place(text: str, env: Mapping[str, str], cwd: str | None) -> str:
    before = []
    for name, value in env.items():
        if not _VARIABLE.match(name):
            raise ConfigurationError(f"{name!r} cannot be the name of an environment variable")
        before.append(f"export {name}={shlex.quote(str(value))}")
    if cwd is not None:
        before.append(f"cd {shlex.quote(cwd)}")
    # A brace group on lines of its own holds whatever the text is: comments, here-documents, several lines.
    return " && ".join([*before, f"{{\n{text}\n}}"]) if before else text
