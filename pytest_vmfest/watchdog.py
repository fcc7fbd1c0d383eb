"""Watching the consoles of a test's nodes while the test runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.alarms import Alarm, alarming
from pytest_vmfest.errors import ConsoleAlarmError, VmfestError

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Sequence

    from pytest_vmfest.node import Node

# Consoles are looked at no more often than this.
_INTERVAL_S = 0.5


@dataclass
class _Post:
    """A node, and how much of its console has been looked through."""

    node: Node
    done: int


class Watchdog:
    """Looks for alarms on the consoles of those nodes that the running test uses.

    Each node's link calls `look` while a command or a transfer runs, so a guest in trouble ends what waits
    for another one of the test's guests, too.
    """

    def __init__(self, patterns: Sequence[re.Pattern[str]], *, breaks_off: bool) -> None:
        """Look for ``patterns``; with ``breaks_off``, an alarm ends commands."""
        self._patterns = patterns
        self._breaks_off = breaks_off
        self._lock = threading.Lock()
        self._posts: list[_Post] = []
        self._alarms: list[Alarm] = []
        self._looked = 0.0
        self._off_duty = False

    def begin(self, nodes: Iterable[tuple[Node, int]]) -> None:
        """A test begins with these nodes, each given with the length of its console by now."""
        with self._lock:
            self._posts = [_Post(node, done) for node, done in nodes]
            for post in self._posts:
                post.node.instance.expected.clear()
            self._alarms = []
            self._off_duty = False

    def add(self, node: Node) -> None:
        """The test has a further node, which was made for it."""
        node.watch_with(self.look)
        with self._lock:
            # What the guest's template had said is not the test's matter.
            self._posts.append(_Post(node, node.instance.console_start))

    def end(self) -> list[Alarm]:
        """The test has ended: all that has alarmed it. Until the next begins, nothing is broken off."""
        self._look(at_once=True)
        with self._lock:
            self._off_duty = True
            return list(self._alarms)

    @property
    def breaks_off(self) -> bool:
        """Whether an alarm ends commands, and makes the test fail."""
        return self._breaks_off

    def listen(self) -> None:
        """Look now, and break nothing off: a machine is about to go."""
        self._look(at_once=True)

    @property
    def alarms(self) -> list[Alarm]:
        """What has alarmed the present test so far, found out now."""
        self.listen()
        with self._lock:
            return list(self._alarms)

    def look(self, at_once: bool) -> None:
        """Raise `ConsoleAlarmError` if there is an alarm that is to break off what runs."""
        self._look(at_once=at_once)
        with self._lock:
            if self._alarms and self._breaks_off and not self._off_duty:
                raise ConsoleAlarmError(str(self._alarms[0]), line=self._alarms[0].line)

    def _look(self, *, at_once: bool) -> None:
        with self._lock:
            if self._off_duty or (not at_once and time.monotonic() - self._looked < _INTERVAL_S):
                return
            for post in self._posts:
                self._alarms += self._news(post, unfinished=at_once)
            self._looked = time.monotonic()

    def _news(self, post: _Post, *, unfinished: bool) -> list[Alarm]:
        """What is new on a console; of a line that is not whole yet only if ``unfinished``."""
        node = post.node
        try:
            text = node.console()[post.done :]
        except (VmfestError, OSError):
            return []  # gone, or an overloaded hypervisor: that is told elsewhere
        whole = text.rfind("\n") + 1
        post.done += whole
        lines = alarming(text if unfinished else text[:whole], self._patterns, node.instance.expected)
        found = [Alarm(node.name, node.instance.name, line) for line in lines]
        return [alarm for alarm in found if alarm not in self._alarms]
