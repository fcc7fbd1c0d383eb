"""``vmfest template``: the frozen machines that instances resume from."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from pytest_vmfest.cli import show
from pytest_vmfest.cli.setup import examples, json_option, with_setup
from pytest_vmfest.cli.units import age, size

if TYPE_CHECKING:
    from pytest_vmfest.cli.setup import Setup
    from pytest_vmfest.warm.templates import Failure, Template


@click.group(epilog=examples("vmfest template list", "vmfest template remove tiny-1f2e3d4c5b6a"))
def template() -> None:
    """List and remove templates, which instances resume from.

    A template is a machine frozen with its memory. The first instance of an image and hardware makes it: it
    boots, settles and is frozen. It is made anew when anything has changed that it depends on, and removed
    when nobody has used it for two weeks.
    """


@template.command("list", epilog=examples("vmfest template list --json"))
@json_option
@with_setup("home")
def list_templates(setup: Setup, json_: bool) -> None:
    """List this store's templates and who uses them, the last used first.

    Below them is what could not be frozen or resumed, and boots for a day therefore. In JSON such a row has
    the reason as "failure", which is null for templates.
    """
    from pytest_vmfest.warm.templates import failures_in, templates_in, users_in

    users = users_in(setup.home)
    rows = [_row(template, users) for template in templates_in(setup.home)]
    failures = failures_in(setup.home)
    if json_:
        show.as_json(rows + [_failed_row(failure) for failure in failures])
        return
    if rows:
        _show(rows)
    elif not failures:
        show.note("There are no templates. The first machine of an image makes one: vmfest up tiny")
    for failure in failures:
        reason = failure.reason.strip().replace("\n", "\n  ")
        click.echo(f"{failure.kind}: not frozen, found out {age(failure.since)} ago: {reason}")
    if failures:
        show.note("Machines of these kinds boot. To try at once again: vmfest template remove --all")


@template.command("remove", epilog=examples("vmfest template remove --all"))
@click.argument("names", metavar="NAME…", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All of them.")
@with_setup("home")
def remove_templates(setup: Setup, names: tuple[str, ...], all_: bool) -> None:
    """Remove templates; the next machine of that kind makes a new one.

    One that machines have gone on from is refused: their disks stand on it. With --all, what could not be
    frozen is tried again, too.
    """
    from pytest_vmfest.warm.templates import forget_failures, templates_in, users_in

    if bool(names) == all_:
        raise click.UsageError("which? give names, or --all")
    there = {template.name: template for template in templates_in(setup.home)}
    missing = [name for name in names if name not in there]
    if missing:
        raise click.ClickException(
            f"there is no template {', '.join(missing)}\n  there are: {', '.join(there) or 'none'}"
        )
    users = users_in(setup.home)
    refused = []
    for name in dict.fromkeys(names or there):
        if machines := users.get(name):
            refused.append(f"template {name} is in use by {', '.join(machines)}\n  destroy them first")
        elif not there[name].remove():
            refused.append(f"template {name} is just being made, or cannot be removed")
        else:
            click.echo(f"{name}: removed")
    if all_:
        forget_failures(setup.home)
    if refused:
        raise click.ClickException("\n".join(refused))


def _show(rows: list[dict[str, Any]]) -> None:
    show.table(
        ("name", "image", "driver", "memory", "cpus", "on disk", "used", "machines"),
        [
            (
                row["name"],
                row["image"] or "(not whole)",
                row["driver"],
                f"{row['memory_mib']} MiB" if row["memory_mib"] else "",
                str(row["cpus"] or ""),
                size(row["bytes_on_disk"]),
                age(row["last_used"]),
                ", ".join(row["machines"]) or "-",
            )
            for row in rows
        ],
    )


def _row(template: Template, users: dict[str, list[str]]) -> dict[str, Any]:
    facts = template.facts()
    return {
        "name": template.name,
        "image": facts.image if facts else None,
        "driver": facts.driver if facts else "",
        "memory_mib": facts.memory_mib if facts else None,
        "cpus": facts.cpus if facts else None,
        "took_s": round(facts.took_s, 1) if facts else None,
        "bytes_on_disk": template.bytes_on_disk,
        "last_used": round(template.last_used, 3) or time.time(),
        "machines": users.get(template.name, []),
        "failure": None,
    }


def _failed_row(failure: Failure) -> dict[str, Any]:
    return {
        "name": failure.kind,
        "image": failure.image,
        "driver": "",
        "memory_mib": None,
        "cpus": None,
        "took_s": None,
        "bytes_on_disk": 0,
        "last_used": round(failure.since, 3),
        "machines": [],
        "failure": failure.reason,
    }
