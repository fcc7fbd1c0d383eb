"""``vmfest instance``: the machines that there are, whoever made them."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from pytest_vmfest.cli import show
from pytest_vmfest.cli.setup import examples, json_option, with_setup
from pytest_vmfest.cli.units import age
from pytest_vmfest.errors import MachineNotFoundError, MachineStateError, VmfestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_vmfest.cli.setup import Setup
    from pytest_vmfest.drivers.base import Driver, MachineInfo

_CONSOLE_INTERVAL_S = 0.2

_names = click.argument("names", metavar="NAME…", nargs=-1, required=True)


@click.group(
    epilog=examples(
        "vmfest instance list", "vmfest instance ssh tiny-1f2e3d4c", "vmfest instance destroy tiny-1f2e3d4c"
    )
)
def instance() -> None:
    """List, enter, watch, pause and destroy machines.

    Those of other processes too, such as the ones that pytest kept (--vm-keep).
    """


@instance.command("list", epilog=examples("vmfest instance list --json"))
@json_option
@with_setup("home", "driver")
def list_instances(setup: Setup, json_: bool) -> None:
    """List the machines of this store, oldest first.

    OWNER says who made a machine: "pytest" with the run's id for a test, "up" for vmfest up.
    """
    with _driver(setup) as driver:
        infos = driver.machines()
    if json_:
        show.as_json([row(info) for info in infos])
    elif not infos:
        show.note("There are no machines. Boot one: vmfest up tiny")
    else:
        show.table(
            ("name", "state", "image", "memory", "cpus", "ssh at", "owner", "age"),
            [
                (
                    info.name,
                    info.state.value,
                    info.image,
                    f"{info.memory_mib} MiB",
                    str(info.cpus),
                    str(info.endpoint or "-"),
                    _owner(info),
                    age(info.created),
                )
                for info in infos
            ],
        )


@instance.command(
    "ssh",
    epilog=examples(
        "vmfest instance ssh tiny-1f2e3d4c",
        "vmfest instance ssh tiny-1f2e3d4c -- uname -a",
        "vmfest instance ssh tiny-1f2e3d4c -- 'dmesg | tail'",
    ),
)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@with_setup("home", "driver")
def enter(setup: Setup, name: str, command: tuple[str, ...]) -> None:
    """Log into a machine, or run a command there.

    This host's ssh program does that, with the machine's port, user, key and host key. A COMMAND of one word
    is shell text; several are passed on as they are. The exit status is the command's.
    """
    from pytest_vmfest.drivers.base import MachineState
    from pytest_vmfest.openssh import ssh_words

    program = shutil.which("ssh")
    if program is None:
        raise click.ClickException(
            "there is no ssh program on this host\n  install it: apt-get install openssh-client"
        )
    with _driver(setup) as driver:
        info = driver.find([name])[0]
        if info.state is not MachineState.RUNNING or info.endpoint is None:
            verb = "resume" if info.state is MachineState.PAUSED else "start"
            raise MachineStateError(
                f"machine {name!r} is {info.state.value}", hint=f"vmfest instance {verb} {name}"
            )
        model = driver.own_image(info.image) or setup.server().images.get(info.image)
        words = ssh_words(info.endpoint, model.login)
    if command:
        words.append(command[0] if len(command) == 1 else shlex.join(command))
    os.execv(program, words)


@instance.command("console", epilog=examples("vmfest instance console tiny-1f2e3d4c --follow"))
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on as the machine writes, until it is off or gone.")
@with_setup("home", "driver")
def console(setup: Setup, name: str, follow: bool) -> None:
    """Print what a machine wrote to its console.

    That is all that came out of its first serial port since it was created.
    """
    from pytest_vmfest.drivers.base import ON

    with _driver(setup) as driver:
        driver.find([name])
        shown = ""
        while True:
            try:
                # Asked for first: what is written just before the end is to be shown.
                goes_on = driver.state(name) in ON
                text = driver.console(name)
            except MachineNotFoundError:
                return
            click.echo(text.removeprefix(shown), nl=False)
            shown = text
            if not follow or not goes_on:
                return
            time.sleep(_CONSOLE_INTERVAL_S)


@instance.command(
    "destroy", epilog=examples("vmfest instance destroy tiny-1f2e3d4c", "vmfest instance destroy --all")
)
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All machines of this store, also those in use by others.")
@with_setup("home", "driver")
def destroy(setup: Setup, names: tuple[str, ...], all_: bool) -> None:
    """Remove every trace of machines.

    They may be in any state. There is no way back.
    """
    if all_ == bool(names):
        raise click.UsageError("give either the names of machines, or --all")
    with _driver(setup) as driver:
        infos = driver.machines() if all_ else driver.find(names)
        if not infos:
            show.note("There are no machines.")
        try:
            _each([info.name for info in infos], driver.destroy, "destroyed")
        finally:
            _remove_networks(driver, infos)


@instance.command("pause", epilog=examples("vmfest instance pause tiny-1f2e3d4c"))
@_names
@with_setup("home", "driver")
def pause(setup: Setup, names: tuple[str, ...]) -> None:
    """Halt machines where they are; they keep their memory."""
    _on_each(setup, names, lambda driver, name: driver.pause(name), "paused")


@instance.command("resume", epilog=examples("vmfest instance resume tiny-1f2e3d4c"))
@_names
@with_setup("home", "driver")
def resume(setup: Setup, names: tuple[str, ...]) -> None:
    """Let paused machines go on."""
    _on_each(setup, names, lambda driver, name: driver.resume(name), "resumed")


@instance.command("start", epilog=examples("vmfest instance start tiny-1f2e3d4c"))
@_names
@with_setup("home", "driver", "accel", "qemu", "cpu")
def start(setup: Setup, names: tuple[str, ...]) -> None:
    """Power on machines, or go on from their saved state.

    Does not wait until the guest has booted.
    """
    from pytest_vmfest.instance import START_TIMEOUT_S
    from pytest_vmfest.waiting import Deadline

    _on_each(setup, names, lambda driver, name: driver.start(name, Deadline(START_TIMEOUT_S)), "started")


@instance.command("stop", epilog=examples("vmfest instance stop tiny-1f2e3d4c"))
@_names
@with_setup("home", "driver")
def stop(setup: Setup, names: tuple[str, ...]) -> None:
    """Let guests shut down, and wait until they have.

    Their disks are kept. A guest that does not react can only be destroyed.
    """
    from pytest_vmfest.instance import STOP_TIMEOUT_S
    from pytest_vmfest.waiting import Deadline

    _on_each(setup, names, lambda driver, name: driver.stop(name, Deadline(STOP_TIMEOUT_S)), "stopped")


def row(info: MachineInfo) -> dict[str, Any]:
    """What JSON tells of a machine; ``created`` is in seconds since the epoch."""
    endpoint = info.endpoint
    return {
        "name": info.name,
        "state": info.state.value,
        "image": info.image,
        "memory_mib": info.memory_mib,
        "cpus": info.cpus,
        "endpoint": {"host": endpoint.host, "port": endpoint.port} if endpoint else None,
        "tags": dict(info.tags),
        "created": info.created,
    }


@contextmanager
def _driver(setup: Setup) -> Iterator[Driver]:
    # Machines are listed and operated by the driver alone: no image has to be there for that.
    with setup.server() as server:
        yield server.driver


def _on_each(setup: Setup, names: Sequence[str], action: Callable[[Driver, str], None], done: str) -> None:
    with _driver(setup) as driver:
        driver.find(names)
        _each(list(dict.fromkeys(names)), lambda name: action(driver, name), done)


def _each(names: Sequence[str], action: Callable[[str], None], done: str) -> None:
    """Do it to all, also when it fails with some; then tell every failure."""
    failures = []
    for name in names:
        try:
            action(name)
        except VmfestError as error:
            failures.append(f"{name}: {error}")
        else:
            click.echo(f"{name}: {done}")
    if failures:
        raise click.ClickException("\n".join(failures))


def _remove_networks(driver: Driver, destroyed: Sequence[MachineInfo]) -> None:
    """Remove the private networks of groups that have no machine any more."""
    still = {info.tags.get("group") for info in driver.machines()}
    for network in {info.tags.get("group") for info in destroyed} - still:
        if network:
            driver.remove_network(network)


def _owner(info: MachineInfo) -> str:
    words = [info.tags.get("owner"), info.tags.get("run"), info.tags.get("worker"), info.tags.get("node")]
    return " ".join(word for word in words if word) or "-"
