"""Running the host's programs while an image is built: bounded in time, heard to the end, never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 30


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
) -> str:
    """Run ``command`` and return what it printed, on both streams.

    ``environment`` is added to this process's own; ``watch`` is called a few times per second meanwhile. The
    command ends with this process, and on any exception all that it started is killed. Raises `ImageBuildError`
    with the last lines printed when it is missing, fails, or takes longer than ``timeout_s`` seconds.
    """
    words = [str(word) for word in command]
    program = find_program(words[0])
    if program is None:
        raise ImageBuildError(f"{words[0]} is not installed", hint="vmfest doctor says how to install it")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as source:
        source.write((stdin or "").encode())
        source.seek(0)
        process = subprocess.Popen(
            # A parent that was killed (-9) cannot clean up: the kernel ends the command for it.
            ["setpriv", "--pdeathsig", "TERM", program, *words[1:]],
            stdin=source,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
                **(environment or {}),
            },
            start_new_session=True,
        )
        try:
            in_time = _wait(process, timeout_s, watch)
        finally:
            _kill_group(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if not in_time:
        raise ImageBuildError(f"{words[0]} did not end within {timeout_s:g} s", log=tail(text))
    if process.returncode != 0:
        raise ImageBuildError(
            f"{' '.join(words[:6])} failed with status {process.returncode}:\n{tail(text)}", log=tail(text)
        )
    return text


def find_program(name: str) -> str | None:
    """The path of a program, searched also where ordinary users' ``PATH`` does not reach on Debian."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def tail(text: str) -> str:
    """The last lines of ``text``."""
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _wait(process: subprocess.Popen[bytes], timeout_s: float, watch: Callable[[], None] | None) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            if watch is not None:
                watch()
        else:
            return True
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the command's session; its first process gets a moment to clean up itself."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
