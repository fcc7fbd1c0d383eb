"""What can be found out about a node when its test has failed, quickly and whatever state it is in."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.errors import VmfestError
from pytest_vmfest.waiting import all_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_vmfest.journal import Remembered
    from pytest_vmfest.node import Node

# All looks at one test's nodes take no longer.
LOOK_S = 5.0


@dataclass
class Look:
    """A node at a moment. What could not be had is told in ``trouble``, in a line for each thing."""

    node: str
    machine: str
    role: str
    image: str
    driver: str
    timings: Mapping[str, float]
    commands: Sequence[Remembered]
    state: str = "unknown"
    ssh_command: str = ""
    console: str = ""
    """All that the guest wrote to its first serial port."""
    began: int = 0
    """How many characters of it are older than the test."""
    alarms: list[str] = field(default_factory=list)
    """Lines of the console that tell of trouble in the guest."""
    let_down: str = ""
    """How the hypervisor failed the machine, whatever the guest did; empty if it has not."""
    trouble: list[str] = field(default_factory=list)
    screenshot: Callable[[Path], None] | None = field(default=None, repr=False)
    """Writes its screen as PNG, if it has one now."""

    @property
    def console_of_test(self) -> str:
        """What the guest wrote since the test began."""
        return self.console[self.began :]


def look_at(nodes: Sequence[tuple[Node, int]], *, state: str = "") -> list[Look]:
    """Look at all, each given with the length that its console had when the test began.

    Takes `LOOK_S` at most and raises nothing. With ``state`` the hypervisor is not asked for it: the machine
    is about to go.
    """
    looks = [_known(node, began) for node, began in nodes]
    parts = {"console": _console} if state else {"console": _console, "state": _state}
    if state:
        for look in looks:
            look.state = state
    asking = [""] * len(nodes)

    def find_out(number: int) -> None:
        # One after the other, as a driver is to be asked about a machine.
        for what, part in parts.items():
            asking[number] = what
            try:
                part(nodes[number][0], looks[number])
            except (VmfestError, OSError) as error:
                looks[number].trouble.append(_untold(what, str(error)))

    ends = all_within(LOOK_S, *(partial(find_out, number) for number in range(len(nodes))))
    for look, what, end in zip(looks, asking, ends, strict=True):
        if end:
            look.trouble.append(_untold(what, end))
    return looks


def _untold(what: str, why: str) -> str:
    return f"its {what} cannot be told: {why.partition(chr(10))[0]}"


def console_lengths(nodes: Iterable[Node]) -> dict[str, int]:
    """How much each node's console holds by now, by name; 0 where it cannot be read within `LOOK_S`."""
    found = {node.name: 0 for node in nodes}

    def measure(node: Node) -> None:
        found[node.name] = len(node.console())

    all_within(LOOK_S, *(partial(measure, node) for node in nodes))
    return dict(found)


def _known(node: Node, began: int) -> Look:
    """What is known without asking the hypervisor."""
    instance = node.instance
    return Look(
        node=node.name,
        machine=instance.name,
        role=node.role,
        image=instance.image.name,
        driver=instance.driver.name,
        timings=dict(node.timings),
        commands=node.journal.commands,
        began=began,
    )


def _console(node: Node, look: Look) -> None:
    look.console = node.console()


def _state(node: Node, look: Look) -> None:
    state = node.instance.state
    look.state = state.value
    if state in (MachineState.RUNNING, MachineState.PAUSED):
        look.screenshot = node.screenshot
    if state is MachineState.RUNNING:
        look.ssh_command = node.ssh_command
    if state is MachineState.ABORTED:
        look.let_down = "its hypervisor's process ended by itself or was killed"
    elif state is MachineState.PAUSED:
        look.let_down = node.instance.driver.standstill(node.instance.name)
