"""Running the host's programs while an image is built: bounded in time, heard to the end, never left over."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from typing import IO, TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_TAIL_LINES = 30
_POLL_S = 0.25


def run(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    watch: Callable[[str], None] | None = None,
) -> str:
    """Run ``command`` and return what it printed, on both streams.

    ``environment`` is added to this process's own; ``watch`` is called a few times per second with what was
    printed so far. The command does not outlive this process, and on any exception all that it started is
    killed. Raises `ImageBuildError` with the last lines printed when the program is missing, fails, or takes
    longer than ``timeout_s`` seconds.
    """
    words = [str(word) for word in command]
    name = words[0].rpartition("/")[2]
    program = find_program(words[0])
    if program is None:
        raise ImageBuildError(f"{name} is not installed", hint="vmfest doctor says how to install it")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as source:
        source.write(stdin.encode())
        source.seek(0)
        process = subprocess.Popen(
            # Killed (-9), this process cannot clean up: the kernel then ends the command for it.
            ["setpriv", "--pdeathsig", "KILL", program, *words[1:]],
            stdin=source,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PATH": _search_path(),
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
                **(environment or {}),
            },
            start_new_session=True,
        )
        try:
            in_time = _wait(process, timeout_s, lambda: watch(_content(output)) if watch else None)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        text = _content(output)
    if in_time and process.returncode == 0:
        return text
    what = f"failed with status {process.returncode}" if in_time else f"did not end within {timeout_s:g} s"
    last = "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
    raise ImageBuildError(f"{name} {what}:\n{last}", log=last)


def find_program(name: str) -> str | None:
    """The path of a program, searched also where ordinary users' ``PATH`` does not reach on Debian."""
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _content(file: IO[bytes]) -> str:
    # pread, since the command writes at the position that the descriptors share.
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, poll: Callable[[], None]) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            poll()
        else:
            return True
    return False
