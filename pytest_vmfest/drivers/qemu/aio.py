"""How QEMU is to read and write disk files: by the kernel's io_uring where that works, else by threads.

A snapshot's memory is read in pieces of 32 KiB. With QEMU's own threads each of these costs two changes of
task, and the loading of a snapshot about twice the time.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, Literal

from pytest_vmfest.folders import make_private

if TYPE_CHECKING:
    from pathlib import Path

Aio = Literal["io_uring", "threads"]

# Before, its memory counts as locked, of which users have little (RLIMIT_MEMLOCK), and machines on some
# kinds of storage were seen to stand still.
_KERNEL = (5, 13)
_TIMEOUT_S = 20.0
_PAGE_BYTES = 4096
_READ = ("bench", "-f", "raw", "-i", "io_uring", "-c", "1", "-d", "1", "-s", str(_PAGE_BYTES))


def choose_aio(image_program: str, folder: Path) -> Aio:
    """What works here: with this kernel, this ``qemu-img``, and the file system that ``folder`` is on.

    Containers often forbid io_uring, and QEMU may be built without.
    """
    if _kernel() < _KERNEL:
        return "threads"
    try:
        make_private(folder)
        with _unnamed_file(folder) as file:
            file.truncate(_PAGE_BYTES)
            # Some versions of QEMU find out only when they read, and then only complain.
            done = subprocess.run(
                [image_program, *_READ, f"/proc/self/fd/{file.fileno()}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=(file.fileno(),),
                timeout=_TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return "threads"
    return "io_uring" if done.returncode == 0 and not done.stderr else "threads"


def _unnamed_file(folder: Path) -> IO[bytes]:
    """A file that is gone with us, on a descriptor that no program takes for a standard one."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fdopen(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3), "r+b", buffering=0)


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
