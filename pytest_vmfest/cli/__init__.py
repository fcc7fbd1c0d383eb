"""The command line ``vmfest``.

Importing it is cheap: each command loads what it needs when it runs.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pytest_vmfest.cli import doctor, image, instance, up
from pytest_vmfest.cli.setup import examples
from pytest_vmfest.errors import ConfigurationError, VmfestError

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Vmfest(click.Group):
    """Ends every command in order, and turns our errors into one message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command: 1 for an error, 2 for a wrong argument or setting, 128 + N for signal N."""
        with _ended_by_signals():
            try:
                return super().invoke(ctx)
            except VmfestError as error:
                kind = click.UsageError if isinstance(error, ConfigurationError) else click.ClickException
                raise kind(str(error)) from None
            except KeyboardInterrupt:
                ctx.exit(128 + signal.SIGINT)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that no machine, folder or process is left behind."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Another setting is somebody's intention: nohup ignores SIGHUP.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@click.group(
    cls=_Vmfest,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "vmfest doctor --install   see what works here, and install what is missing",
        "vmfest up tiny            boot a machine, and destroy it at Ctrl-C",
        "vmfest instance list      see which machines there are",
    ),
)
@click.version_option(package_name="pytest-vmfest", prog_name="vmfest")
def main() -> None:
    """Disposable virtual machines: the command line of pytest-vmfest.

    Images, keys and machines are kept in one folder, the store: VMFEST_HOME, or else the user's cache folder.
    Options of a command can also be set by environment variables: VMFEST_DRIVER, VMFEST_ACCEL, and so on.
    """


for _command in (doctor.doctor, image.image, instance.instance, up.up):
    main.add_command(_command)
