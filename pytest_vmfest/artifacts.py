"""What is kept of failing tests' machines: files in ``DIR/<run>/<test>/<node>``.

Everything raises `OSError` when the disk does not take it; whoever calls tells it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

from pytest_vmfest.remote import ENCODING
from pytest_vmfest.waiting import all_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_vmfest.errors import StartError
    from pytest_vmfest.journal import Remembered, Said
    from pytest_vmfest.look import Look

LAST = "last"
# Screens of all of a test's nodes take no longer.
_SCREENSHOT_S = 10.0
_HEAD, _TAIL = 60, 55


def begin_run(folder: Path) -> Path:
    """A new folder in ``folder`` for this run, to which ``last`` leads from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    run = _fresh(folder, time.strftime("%Y%m%d-%H%M%S"))
    link = folder / f".{LAST}-{os.getpid()}"
    link.symlink_to(run.name)
    try:
        link.replace(folder / LAST)
    except OSError:
        link.unlink()
        run.rmdir()
        raise
    return run


def end_run(run: Path) -> None:
    """A run that has kept nothing leaves nothing, ``last`` included."""
    try:
        run.rmdir()
        last = run.parent / LAST
        if last.readlink().name == run.name:
            last.unlink()
    except OSError:
        return  # something was kept, or somebody else has tidied up


def folder_name(test: str) -> str:
    """A readable name for the folder of a test: of letters, digits and ``-_.``, 120 characters at most."""
    name = re.sub(r"[^\w.]+", "-", test, flags=re.ASCII).strip("-.") or "test"
    return name if len(name) <= _HEAD + _TAIL else f"{name[:_HEAD]}-..-{name[-_TAIL:]}"


class Artifacts:
    """Keeps what belongs to the tests of one process, in its run's folder.

    Each begin of a test has a folder of its own, also when it is run anew; names that are taken get a number.
    """

    def __init__(self, run: Path) -> None:
        """``run`` is the folder of the run, that other processes may use too."""
        self._run = run
        self._test: Path | None = None
        self._nodes: dict[str, Path] = {}

    def begin(self) -> None:
        """A test begins."""
        self._test = None
        self._nodes = {}

    def keep(self, looks: Sequence[Look], about: dict[str, Any]) -> list[Path]:
        """Keep what was found out about nodes, and their screens; returns each one's folder.

        ``about`` says which test it was, with its id as ``test``.
        """
        folders = [self._folder(about["test"], look.node, look.machine) for look in looks]
        pictures = [
            (look, _taking(look.screenshot, folder / "screenshot.png"))
            for look, folder in zip(looks, folders, strict=True)
            if look.screenshot
        ]
        ends = all_within(_SCREENSHOT_S, *(take for _, take in pictures))
        for (look, _), end in zip(pictures, ends, strict=True):
            if end:
                look.trouble.append(f"its screen cannot be had: {end.partition(chr(10))[0]}")
        for look, folder in zip(looks, folders, strict=True):
            _write(folder / "console.log", look.console)
            _write(folder / "commands.log", "".join(_told(look.commands)))
            _write_json(folder / "info.json", {**about, **_facts(look)})
        return folders

    def keep_failed_start(self, error: StartError, about: dict[str, Any]) -> Path:
        """Keep the console of a machine that did not become a node; returns its folder."""
        folder = self._folder(about["test"], error.node, error.machine)
        _write(folder / "console.log", error.console)
        known = {"node": error.node, "machine": error.machine, "stage": error.stage}
        facts = {**known, "elapsed_s": round(error.elapsed_s, 3), "error": str(error)}
        _write_json(folder / "info.json", {**about, **facts})
        return folder

    def _folder(self, test: str, node: str, machine: str) -> Path:
        """The folder of a machine, the same in all phases of a test."""
        if self._test is None:
            self._test = _fresh(self._run, folder_name(test))
        if machine not in self._nodes:
            self._nodes[machine] = _fresh(self._test, node)
        return self._nodes[machine]


def _fresh(folder: Path, name: str) -> Path:
    """A new folder called ``name``, or with a number if that is taken."""
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _taking(screenshot: Callable[[Path], object], path: Path) -> Callable[[], object]:
    return lambda: screenshot(path)


def _facts(look: Look) -> dict[str, Any]:
    names = ("node", "machine", "role", "image", "driver", "state", "ssh_command", "alarms", "trouble")
    timings = {phase: round(seconds, 3) for phase, seconds in look.timings.items()}
    return {**{name: getattr(look, name) for name in names}, "timings_s": timings}


def _told(commands: Sequence[Remembered]) -> Iterator[str]:
    for command in commands:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(command.began))
        yield f"{when} $ {command.command}\n{command.heading}\n"
        yield from _output("stdout", command.stdout)
        yield from _output("stderr", command.stderr)
        yield "\n"


def _output(name: str, said: Said) -> Iterator[str]:
    if said.text:
        cut = f" (the end of {said.characters} characters)" if said.characters > len(said.text) else ""
        yield f"{name}{cut}:\n{said.text}" + ("" if said.text.endswith("\n") else "\n")


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(ENCODING, "replace"))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    _write(path, json.dumps(data, indent=2) + "\n")
