"""The command line's frame: help, version, errors, signals."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner

from pytest_vmfest.cli import main
from pytest_vmfest.errors import ImageNotFoundError


def commands(command, path=()):
    """Every command and group with its words."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(main)], ids=" ".join)
def test_every_command_explains_itself(path):
    """The help of each command has a text of its own and an example."""
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"\n    vmfest {' '.join(path)}".rstrip() in result.stdout


def test_short_helps_are_not_cut():
    """In the lists of commands, each is told in a whole sentence."""
    for path, command in commands(main):
        if isinstance(command, click.Group):
            assert "..." not in CliRunner().invoke(main, [*path, "--help"]).stdout.split("Commands:")[1]


def test_version():
    """`vmfest --version` tells the distribution's version."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"vmfest, version {version('pytest-vmfest')}\n"


def test_importing_loads_nothing_heavy():
    """The command line starts without paramiko, rich, requests or a driver."""
    code = (
        "import sys, pytest_vmfest.cli\n"
        "heavy = {'paramiko', 'cryptography', 'rich', 'requests', 'psutil', 'qemu', 'pytest', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture
def with_command():
    """Add commands to the command line for the time of a test."""
    added = []

    def add(name, function):
        main.add_command(click.Command(name, callback=function))
        added.append(name)

    yield add
    for name in added:
        del main.commands[name]


def test_our_errors_are_one_message(with_command):
    """An error of ours is its message and hint on standard error, with status 1."""

    def fail():
        raise ImageNotFoundError("no image 'x' is installed", hint="add one")

    with_command("fail", fail)
    result = CliRunner().invoke(main, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == "Error: no image 'x' is installed\n  add one\n"
    assert result.stdout == ""


def test_a_wrong_setting_is_status_2(monkeypatch):
    """A wrong environment variable is named, with status 2 like any wrong argument."""
    monkeypatch.setenv("VMFEST_BOOT_TIMEOUT", "soon")
    result = CliRunner().invoke(main, ["image", "list"])
    assert result.exit_code == 2
    assert "VMFEST_BOOT_TIMEOUT" in result.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_unwind_and_tell(with_command, number, status):
    """A signal ends a command through its clean-up, with status 128 + N; then the handlers are as before."""
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 10)
        finally:
            cleaned.append(True)

    # As in a process of its own: pytest's run handles SIGTERM itself.
    outside = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    before = signal.getsignal(number)
    with_command("work", work)
    try:
        result = CliRunner().invoke(main, ["work"])
        after = signal.getsignal(number)
    finally:
        signal.signal(number, outside)
    assert result.exit_code == status
    assert cleaned == [True]
    assert "Traceback" not in result.output
    assert after == before
