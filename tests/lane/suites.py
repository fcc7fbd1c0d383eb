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


_DRIVER = ("--vm-driver", "virtualbox")
_SURFACE = "tests/virtualbox/test_public_surface.py"

SUITES = (
    Suite("surface", (_SURFACE,), _DRIVER),
    Suite("contract", ("tests/contract",), ("-k", "virtualbox")),
    Suite("functional", ("tests/functional",), _DRIVER),
    Suite("virtualbox", ("tests/virtualbox",), (*_DRIVER, f"--ignore={_SURFACE}")),
)
