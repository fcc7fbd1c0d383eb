"""What a guest does before it is frozen, so that those who resume from it have nothing left to do."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_vmfest.errors import CommandError
from pytest_vmfest.warm import mending

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.node import Node
    from pytest_vmfest.waiting import Deadline

# As long as services are starting, and until the guest has done next to nothing for two seconds. One that
# never rests is frozen as it is.
_REST = """\
command -v systemctl > /dev/null && timeout 60 systemctl is-system-running --wait > /dev/null
calm=0 tries=0
while [ $calm -lt 2 ] && [ $tries -lt 30 ]; do
  read -r _ user nice system idle rest < /proc/stat
  busy=$((user + nice + system)) all=$((busy + idle))
  sleep 1
  read -r _ user nice system idle rest < /proc/stat
  busy=$((user + nice + system - busy)) all=$((user + nice + system + idle - all))
  [ $((busy * 10)) -lt $all ] && calm=$((calm + 1)) || calm=0
  tries=$((tries + 1))
done
sync
"""
# What resumed guests are introduced by, so that it need not be read from their disks.
_USE = """\
ip link > /dev/null
mkdir -p /run/vmfest
sync
"""
_LOGINS = 2
# A guest's sshd has to see that the last connection is gone.
_FAREWELL_S = 0.3


def settle(node: Node, deadline: Deadline, check: Callable[[], None]) -> None:
    """Have the guest at rest, what the first commands need in its memory, and its clock right.

    ``check`` is called between the steps, and may raise.
    """
    node.run_script(_REST, deadline)
    check()
    with suppress(CommandError):  # a system that cannot be written to does without: see `mending.wake_script`
        node.run_script(mending.bring_script(), deadline, input=mending.program())
    for _ in range(_LOGINS):
        check()
        node.disconnect()
        node.run_script(_USE, deadline)
    mending.set_clock(lambda text: node.run_script(text, deadline))
    check()
    node.disconnect()
    time.sleep(_FAREWELL_S)
