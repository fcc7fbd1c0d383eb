"""What runs where, and in this order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Tests that one pytest runs; what is ``essential`` must be proved, or the lane has proved nothing."""

    name: str
    paths: tuple[str, ...]
    options: tuple[str, ...] = ()
    essential: bool = True
    plain: bool = False
    """Whether it runs in a plain tree, as it starts no machine."""
    cold: bool = False
    """Whether all of its machines boot; else they resume from templates where they can."""


_DRIVER = ("--vm-driver", "virtualbox")
_OURS = "tests/virtualbox"
_ONCE = (*_DRIVER, "-m", "not slow and not any_driver")
_ENDS = tuple(f"tests/functional/test_{name}.py" for name in ("sharing", "teardown", "virtualbox_faults"))
_SURFACE = f"{_OURS}/test_public_surface.py"

SERVICE = Suite("service", (_OURS,), ("-m", "not starts_machines"), plain=True)
MACHINES = Suite("machines", (_SURFACE, _OURS), (*_DRIVER, "-m", "starts_machines"))
CONTRACT = Suite("contract", ("tests/contract",), ("-k", "virtualbox"))
FUNCTIONAL = Suite("functional", ("tests/functional",), (*_ONCE, *(f"--ignore={path}" for path in _ENDS)))
ENDINGS = Suite("endings", _ENDS, _ONCE, cold=True)

SHARES = ((CONTRACT, ENDINGS), (SERVICE, FUNCTIONAL, MACHINES))
"""What two hosts run at the same time; both take about as long."""
SUITES = (SERVICE, MACHINES, CONTRACT, FUNCTIONAL, ENDINGS)
