"""``vmfest up``: boot one machine, to look around in it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_vmfest.cli import show
from pytest_vmfest.cli.instance import row
from pytest_vmfest.cli.setup import examples, json_option, with_setup
from pytest_vmfest.errors import MachineNotFoundError, MachineStateError
from pytest_vmfest.request import VmRequest
from pytest_vmfest.signals import held_back
from pytest_vmfest.specs import HARDWARE, NETWORK_MODES

if TYPE_CHECKING:
    from pytest_vmfest.cli.setup import Setup
    from pytest_vmfest.node import Node

_WATCH_INTERVAL_S = 0.5


@click.command(epilog=examples("vmfest up tiny", "vmfest up debian-12 --hardware small --detach"))
@click.argument("image")
@click.option(
    "--name", metavar="NAME", help="The machine's name, also its host name.  [default: made from the image's]"
)
@click.option(
    "--hardware", type=click.Choice(list(HARDWARE)), help="Its size.  [environment: VMFEST_HARDWARE]"
)
@click.option(
    "--network", type=click.Choice(NETWORK_MODES), help="How it is connected.  [environment: VMFEST_NETWORK]"
)
@click.option(
    "--init-script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A shell script to run as root after the boot.",
)
@click.option("--detach", "-d", is_flag=True, help="Leave it running and return.")
@json_option
@with_setup("home", "driver", "accel", "qemu", "cpu")
def up(
    setup: Setup,
    image: str,
    name: str | None,
    hardware: str | None,
    network: str | None,
    init_script: Path | None,
    detach: bool,
    json_: bool,
) -> None:
    """Boot a machine, and destroy it at Ctrl-C.

    IMAGE is a name, a path or a URL; it is built or downloaded if need be. When the machine answers, the ssh
    command that leads into it is printed. It lives until Ctrl-C, and is destroyed then. With --detach it goes
    on: see vmfest instance list, ssh and destroy.
    """
    settings = setup.settings
    request = VmRequest(
        hardware=hardware or settings.hardware,
        network=network or settings.network,  # type: ignore[arg-type]  # the option's choices
        init_script=init_script,
    )
    with show.progress() as progress, setup.server(progress) as server:
        model = server.image(image)
        server.own({"owner": "up"})
        stays, node = False, None
        try:
            node = server.launch_request(
                request,
                model,
                name=name or _host_name(model.name),
                machine=name,
                progress=progress,
            )
            if detach:
                server.release(node.instance.name)
                stays = True
            _tell(node, detach=detach, json_=json_)
            if not detach:
                _watch(node)
        finally:
            if node is not None and not stays:
                with held_back():
                    show.note(f"destroying {node.instance.name}")
                    node.destroy()


def _host_name(image: str) -> str:
    """A host name that tells the image."""
    return re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")[:50].rstrip("-") or "vm"


def _tell(node: Node, *, detach: bool, json_: bool) -> None:
    """The ssh command to standard output, what else there is to know beside it."""
    machine = node.instance.name
    if json_:
        show.as_json({**row(node.instance.info), "ssh_command": node.ssh_command})
    else:
        click.echo(node.ssh_command)
    show.note(
        f"{machine} is up, after {sum(node.timings.values()):.1f} s; also: vmfest instance ssh {machine}"
    )
    if detach:
        show.note(f"To be rid of it: vmfest instance destroy {machine}")
    else:
        show.note("Ctrl-C destroys it.")


def _watch(node: Node) -> None:
    """Return when the machine is off or gone; `MachineStateError` if it died."""
    from pytest_vmfest.drivers.base import MachineState

    machine = node.instance.name
    while True:
        try:
            state = node.instance.state
        except MachineNotFoundError:
            show.note(f"{machine} was destroyed by somebody else")
            return
        if state is MachineState.POWERED_OFF:
            show.note(f"{machine} has shut down")
            return
        if state is MachineState.ABORTED:
            raise MachineStateError(f"machine {machine!r} ended by itself: its hypervisor's process is gone")
        time.sleep(_WATCH_INTERVAL_S)
