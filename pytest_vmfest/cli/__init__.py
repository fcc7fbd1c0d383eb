"""The command line ``vmfest``.

Importing it is cheap: each command loads what it needs when it runs.
"""

from __future__ import annotations

import signal
from typing import Any

import click

from pytest_vmfest.cli import doctor, gc, image, instance, template, up
from pytest_vmfest.cli.setup import examples
from pytest_vmfest.errors import ConfigurationError, VmfestError
from pytest_vmfest.signals import end_by


class _Vmfest(click.Group):
    """Ends every command in order, and turns our errors into one message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command: 1 for an error, 2 for a wrong argument or setting, 128 + N for signal N."""
        restore = end_by(_leave)
        try:
            return super().invoke(ctx)
        except VmfestError as error:
            kind = click.UsageError if isinstance(error, ConfigurationError) else click.ClickException
            raise kind(str(error)) from None
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)
        finally:
            restore()


def _leave(number: int) -> None:
    """Unwind the stack, so that no machine, folder or process is left behind."""
    raise SystemExit(128 + number)


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


for _command in (doctor.doctor, image.image, instance.instance, template.template, up.up, gc.gc):
    main.add_command(_command)
