"""Installing packages of the host's distribution, by its package manager."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import click

from pytest_vmfest.cli.show import note
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCK_TIMEOUT_S = 300
_LOCK_INTERVAL_S = 2.0
# `apt-get update` knows no timeout for its own lock, and names its file when another process has it.
_LISTS_LOCK = "lists/lock"


def install(packages: Sequence[str], *, ask: bool) -> None:
    """Install ``packages`` by apt-get, as root or through sudo; what it prints goes to standard error.

    ``ask`` shows the commands and asks first. Raises `click.ClickException` when there is no apt-get, no
    way to become root, when it fails, or when the user does not want it.
    """
    update, install_ = _commands(packages)
    if ask:
        note("These commands install what is missing:")
        note(f"  {shlex.join(update)}\n  {shlex.join(install_)}")
        _confirm()
    _update(update)
    status, _ = _run(install_)
    if status != 0:
        raise click.ClickException(
            f"{shlex.join(install_)} failed with status {status}; what it said is above"
        )


def _confirm() -> None:
    try:
        agreed = click.confirm("Run them?", default=True, err=True)
    except click.Abort as abort:
        note("")
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        # There was nobody to answer.
        agreed = False
    if not agreed:
        raise click.ClickException("nothing was installed; --yes installs without asking")


def _commands(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise click.ClickException(
            f"there is no apt-get on this host; install by hand (named as in Debian): {names}"
        )
    become_root = [] if os.geteuid() == 0 else ["sudo"]
    if become_root and shutil.which("sudo") is None:
        raise click.ClickException(
            f"packages are installed by root, and there is no sudo; as root: apt-get install {names}"
        )
    apt = [*become_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    apt += ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT_S}"]
    return [*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]


def _update(command: list[str]) -> None:
    """Fetch the package lists, waiting while another apt-get does that.

    A failure is not the end: one of many sources may be broken, and another bring what is needed.
    """
    deadline = Deadline(LOCK_TIMEOUT_S)
    while True:
        status, output = _run(command)
        if status == 0:
            return
        if _LISTS_LOCK not in output or deadline.expired:
            note("vmfest: the package lists could not be renewed; trying with those that are there")
            return
        note("vmfest: waiting for another package manager to end")
        time.sleep(_LOCK_INTERVAL_S)


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and output, which is also passed on line by line."""
    note(f"+ {shlex.join(command)}")
    lines = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            note(line.rstrip("\n"))
    return process.returncode, "".join(lines)
