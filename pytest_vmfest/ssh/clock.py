"""A steady clock for the SSH library, which measures its waits by the time since the epoch.

Where the host's clock is set while it waits, an answer that is to come within a minute would be late at once,
or waited for all day; set back, no keepalive would be sent until the clock has caught up.
"""

from __future__ import annotations

import time
from types import ModuleType

from paramiko import auth_handler, buffered_pipe, channel, packet, transport

# All modules in which it takes the difference of two times, and does nothing else with them.
_MODULES: tuple[ModuleType, ...] = (auth_handler, buffered_pipe, channel, packet, transport)


class _SteadyTime(ModuleType):
    """The module `time`, but for ``time()``, which is monotonic."""

    time = staticmethod(time.monotonic)

    def __getattr__(self, name: str) -> object:
        """Everything else as it is."""
        return getattr(time, name)


def steady() -> None:
    """Let the library measure its waits by the monotonic clock, in this process."""
    for module in _MODULES:
        module.time = _SteadyTime("time")  # type: ignore[attr-defined]
