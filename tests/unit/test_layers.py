"""The house's layers: who may import whom, read from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_vmfest

PACKAGE = Path(pytest_vmfest.__file__).parent
WORDS = {"errors", "specs", "request", "config", "waiting", "remote", "progress", "keyboard"} | {
    "alarms", "checks", "devices", "folders", "guest", "journal", "ledger", "memory", "openssh", "phases",
    "processes", "shell", "signals",
}  # fmt: skip
TOOLS = {"drivers", "images", "ssh"}
LIFE = {"instance", "node", "group", "launcher", "server", "startup", "planning", "link"} | {
    "guardian",
    "handmade",
    "look",
    "ownership",
    "reaper",
    "shared",
    "tries",
    "warm",
    "watchdog",
}
FACES = {
    "plugin",
    "fixtures",
    "factories",
    "markers",
    "run",
    "report",
    "telling",
    "artifacts",
    "timeline",
    "verdict",
    "cli",
}


def modules() -> list[Path]:
    """Every module of the package but its front door, which names all rooms."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> set[str]:
    """All modules that a file imports, at any depth, also for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(dotted: str) -> str | None:
    """The room of ours that an import leads to."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "pytest_vmfest" and len(parts) > 1 else None


def own_room(path: Path) -> str:
    """The room that a file stands in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_its_layer():
    """A new module has to be put into a layer before it can pass."""
    assert {own_room(path) for path in modules()} == WORDS | TOOLS | LIFE | FACES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    """Words import words, a tool only words and itself, life no face, and nobody a concrete driver."""
    here = own_room(path)
    below = {
        **dict.fromkeys(WORDS, WORDS),
        **{tool: WORDS | {tool} for tool in TOOLS},
        **dict.fromkeys(LIFE, WORDS | TOOLS | LIFE),
        **dict.fromkeys(FACES, WORDS | TOOLS | LIFE | FACES),
    }[here]
    for name in imported(path):
        target = room(name)
        assert target is None or target in below, f"{here} must not import {name}"
        if target == "drivers" and here != "drivers":
            names = ("base.", "load_driver", "driver_class", "DRIVERS", "STANDING_ON_TEMPLATES")
            allowed = tuple(f"drivers.{name}" for name in names)
            assert name.removeprefix("pytest_vmfest.").startswith(allowed), f"{here} must not import {name}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("paramiko", {"ssh"}),
        ("virtualbox", {"drivers"}),
        ("qemu", {"drivers"}),
        ("requests", {"images"}),
        ("click", {"cli"}),
        ("rich", {"cli"}),
        ("pytest", {"plugin", "fixtures", "factories", "markers", "report", "run", "telling", "verdict"}),
        ("_pytest", {"plugin", "report", "verdict"}),
    ],
)
def test_each_library_has_its_room(library, rooms):
    """A foreign library is known in one place only."""
    users = {own_room(p) for p in modules() if any(n.split(".")[0] == library for n in imported(p))}
    assert users <= rooms


def test_the_plugin_loads_nothing_heavy():
    """Importing the plugin loads no library that only machines need."""
    heavy = "paramiko cryptography requests virtualbox qemu psutil click rich platformdirs filelock tomli_w"
    code = (
        "import sys, pytest; before = set(sys.modules); import pytest_vmfest.plugin;"
        f"print([n for n in {heavy.split()!r} if n in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    """What the package promises in __all__ is there, and nothing else is invented."""
    for name in pytest_vmfest.__all__:
        assert getattr(pytest_vmfest, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pytest_vmfest.no_such_name
