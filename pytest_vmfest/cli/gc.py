"""``vmfest gc``: the machines that dead runs have left, and those that were kept and are due."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from pytest_vmfest.cli import show
from pytest_vmfest.cli.setup import examples, json_option, with_setup

if TYPE_CHECKING:
    from pytest_vmfest.cli.setup import Setup


@click.command(epilog=examples("vmfest gc", "vmfest gc --json"))
@json_option
@with_setup("home")
def gc(setup: Setup, json_: bool) -> None:
    """Remove what dead runs have left.

    That is: machines and networks of runs that ended without a teardown and whose guardian could not act,
    after a power cut for instance; and machines that pytest kept (--vm-keep) and whose time is over. Machines
    of living runs, machines that are nobody's (vmfest up --detach) and what others made are left alone.

    The next pytest run does the same before it makes its first machine.

    Also removed are templates that are not whole, or that nobody has used for two weeks.
    """
    from pytest_vmfest.reaper import reap_dead
    from pytest_vmfest.warm.templates import tidy

    found = reap_dead(setup.home)
    templates = tidy(setup.home)
    removed = [name for reaped in found for name in reaped.removed]
    kept = {name: until for reaped in found for name, until in reaped.kept.items()}
    errors = [reaped.error for reaped in found if reaped.error]
    if json_:
        show.as_json({"removed": removed, "kept": kept, "templates": templates, "errors": errors})
    else:
        for name in removed:
            click.echo(f"{name}: removed")
        for name, until in kept.items():
            click.echo(f"{name}: kept until {time.strftime('%Y-%m-%d %H:%M', time.localtime(until))}")
        for name in templates:
            click.echo(f"template {name}: removed")
        if not (removed or kept or templates or errors):
            show.note("There is nothing to remove.")
    if errors:
        raise click.ClickException("\n".join(errors))
