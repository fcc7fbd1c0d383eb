"""QEMU as new as VirtualBox's machines need it: the host's own, or Debian unstable's without installing it.

VirtualBox runs in a machine whose CPU, SVM included, is emulated. Older QEMUs do not emulate that well
enough: VirtualBox starts, but its guests get no further than their firmware or kernel.
"""

from __future__ import annotations

import fnmatch
import shlex
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from pytest_vmfest.drivers.qemu import host
from pytest_vmfest.errors import DriverUnavailableError
from pytest_vmfest.folders import make_private
from pytest_vmfest.images.recipes.apt import Mirrors, PrivateApt
from pytest_vmfest.images.recipes.packages import LIBRARIES, LOADER, linked_libraries, unpack
from pytest_vmfest.progress import Progress, Step, silent

OLDEST_MAJOR = 11

_TASK = "emulator"
_FOLDER = "emulator-sid-1"  # to be counted up when the folder's layout changes
_LOCK_TIMEOUT_S = 1800

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES = ("qemu-system-x86", "qemu-utils")
# Dependencies of which no library is needed.
_WITHOUT = ("debconf", "dpkg", "init-system-helpers", "ipxe-qemu", "libc-bin", "perl-base", "systemd", "udev")
_PROGRAMS = {
    host.SYSTEM_PROGRAM: ("-L", "usr/share/seabios", "-L", "usr/share/qemu"),
    host.IMAGE_PROGRAM: (),
}
_WANTED = (
    *(f"usr/bin/{program}" for program in _PROGRAMS),
    *(f"{LIBRARIES}/*.so*", "usr/share/seabios/*.bin", "usr/share/qemu/*.bin"),
)


def emulator(home: Path, progress: Progress = silent) -> Path:
    """The folder of QEMU's programs, for ``--vm-qemu``.

    They are the host's if it has version 11 or newer. Else Debian unstable's are fetched, once for the store
    ``home``, and unpacked into its cache: that takes a minute. Raises `ImageBuildError`.
    """
    own = _host_programs()
    if own is not None:
        return own
    folder = (home / "cache" / _FOLDER).absolute()
    make_private(folder.parent)
    with FileLock(f"{folder}.lock", timeout=_LOCK_TIMEOUT_S):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="emulator-new-") as beside:
                work = Path(beside)
                _fetch(work / "tree", work, progress)
                (work / "tree").rename(folder)
    return folder / "bin"


def is_new_enough(version: str) -> bool:
    """Whether VirtualBox's machines run in machines of a QEMU.

    >>> is_new_enough("11.0.1"), is_new_enough("7.2.22")
    (True, False)
    """
    return int(version.split(".")[0]) >= OLDEST_MAJOR


def wrapper(program: str, arguments: tuple[str, ...]) -> str:
    """The script ``bin/PROGRAM`` that runs ``usr/bin/PROGRAM`` with the loader and libraries beside it.

    The loader goes by the program's name, as processes are told by the name of what they execute.
    ``arguments`` are those that the program gets first; with a slash, files of the folder.
    """
    first = (f'"$here"/{word}' if "/" in word else word for word in map(shlex.quote, arguments))
    return " ".join(
        (
            f'#!/bin/sh\nhere=${{0%/*}}/..\nexec "$here"/loader/{program} --argv0 {program}',
            f'--library-path "$here"/{LIBRARIES} "$here"/usr/bin/{program}',
            *(*first, '"$@"\n'),
        )
    )


def sources(mirrors: Mirrors) -> list[str]:
    """Debian unstable on the host's own mirror."""
    key = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return [f"deb {key}{mirrors.archive} sid main"]


def _host_programs() -> Path | None:
    try:
        programs = host.find_programs()
    except DriverUnavailableError:
        return None
    system, image = Path(programs.system).absolute(), Path(programs.image).absolute()
    if is_new_enough(programs.version) and system.parent == image.parent:
        return system.parent
    return None


def _fetch(tree: Path, work: Path, progress: Progress) -> None:
    """Make the whole folder."""
    apt = PrivateApt(work / "host-apt", _TASK, progress)
    apt.update()
    debian = PrivateApt(work / "apt", _TASK, progress, without=_WITHOUT, sources=sources(apt.mirrors()))
    debian.update()
    packages = debian.download(_PACKAGES)
    progress(Step(_TASK, "unpacking"))
    unpack(packages, tree, lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in _WANTED))
    for name in ("bin", "loader"):
        (tree / name).mkdir()
    for program, arguments in _PROGRAMS.items():
        linked_libraries(tree, tree / "usr/bin" / program)  # raises if one is missing
        shutil.copy(tree / LOADER, tree / "loader" / program)
        script = tree / "bin" / program
        script.write_text(wrapper(program, arguments))
        script.chmod(0o755)
