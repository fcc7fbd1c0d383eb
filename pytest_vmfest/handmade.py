"""The machines that the running test makes by hand, with `vm_server`, so that its report can tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.guest import Introduction
from pytest_vmfest.look import look_at
from pytest_vmfest.node import Node

if TYPE_CHECKING:
    from pytest_vmfest.instance import Instance
    from pytest_vmfest.look import Look
    from pytest_vmfest.watchdog import Watchdog


@dataclass
class _Made:
    """A machine, and how it was when the test destroyed it: mostly before the test's report is made."""

    node: Node
    last: Look | None = None


class Handmade:
    """Knows what a test makes, and has it watched as the nodes of its fixtures are."""

    def __init__(self, watchdog: Watchdog | None) -> None:
        self._watchdog = watchdog
        self._made: list[_Made] = []

    def begin(self) -> None:
        """A test begins. What others have made is not its matter."""
        for made in self._made:
            made.node.instance.before_destroy = lambda: None
        self._made = []

    def add(self, made: Node | Instance) -> None:
        """The test has made a node or a machine."""
        one = _Made(made if isinstance(made, Node) else _as_node(made))
        self._made.append(one)
        one.node.instance.before_destroy = partial(self._leaves, one)
        if self._watchdog:
            self._watchdog.add(one.node)

    def looks(self) -> list[Look]:
        """What can be found out about them, also about those that are gone; not those that were never on."""
        there = look_at([(one.node, 0) for one in self._made if one.last is None])
        gone = [one.last for one in self._made if one.last is not None]
        return [look for look in gone + there if _was_on(look)]

    def _leaves(self, one: _Made) -> None:
        if one.last is not None:
            return  # to destroy what is gone already is allowed
        if self._watchdog:
            self._watchdog.listen()
        (look,) = look_at([(one.node, 0)])
        if _was_on(look):
            look.state = f"destroyed by the test; it was {look.state}"
        look.ssh_command, look.screenshot = "", None
        one.last = look


def _as_node(instance: Instance) -> Node:
    """A machine seen as a node to which no command was given."""
    return Node(instance, Introduction(instance.name), role="", connect_timeout_s=0)


def _was_on(look: Look) -> bool:
    return look.state != MachineState.POWERED_OFF.value or bool(look.console or look.commands)
