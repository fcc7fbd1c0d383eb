"""How QEMU is to read and write disk files: by the kernel's io_uring where that works, else by threads.

A snapshot's memory is read in pieces of 32 KiB. With QEMU's own threads each of these costs two changes of
task, and going back to a snapshot about twice the time.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Literal

Aio = Literal["io_uring", "threads"]

# From here on its memory does not count as locked, of which users have little (RLIMIT_MEMLOCK).
_KERNEL = (5, 12)
_TIMEOUT_S = 20.0
_SECTOR_BYTES = 512


def choose_aio(image_program: str) -> Aio:
    """What works here, with this kernel, whatever confines us, and the QEMU of ``image_program``.

    Containers often forbid io_uring, and QEMU may be built without. A machine with it would not start then.
    """
    if _kernel() < _KERNEL:
        return "threads"
    file = os.memfd_create("vmfest-aio")
    try:
        os.truncate(file, _SECTOR_BYTES)
        disk = f"driver=raw,file.driver=file,file.aio=io_uring,file.filename=/proc/self/fd/{file}"
        done = subprocess.run(
            [image_program, "info", "--image-opts", disk],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(file,),
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "threads"
    finally:
        os.close(file)
    return "io_uring" if done.returncode == 0 else "threads"


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
