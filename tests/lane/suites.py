"""What runs in the VirtualBox host, in this order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Tests that one pytest runs; what is ``essential`` must be proved, or the lane has proved nothing."""

    name: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    essential: bool = True


SUITES = (
    Suite("virtualbox", ("tests/virtualbox",)),
    Suite("contract", ("tests/contract",), ("-k", "virtualbox")),
    Suite("functional", ("tests/functional",), ("--vm-driver", "virtualbox")),
)
