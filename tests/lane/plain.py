"""A plain tree: the image's files in a folder of this host, in which VirtualBox's service runs natively.

There are no kernel modules of VirtualBox in there, so no machine starts; everything else of it works, and
fast. It takes no more rights than building an image does.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.folders import make_private
from pytest_vmfest.images.recipes.disk import PARTITION_START
from pytest_vmfest.images.recipes.rootless import as_root, remove_tree, run_as_root
from pytest_vmfest.images.recipes.tools import run
from tests.lane.place import Place, PlaceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.specs import ImageModel

_FOLDER = "plain-tree"
_LOCK_TIMEOUT_S = 1800
_SERVICE = "usr/lib/virtualbox/VBoxSVC"
_CONSOLE = "a plain tree has no console"

# Devices one by one: the host's own may have VirtualBox's among them.
_ENTER = """\
set -e
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs tmpfs "$1"/dev
for name in full null random urandom zero; do
  : > "$1"/dev/$name
  mount --bind /dev/$name "$1"/dev/$name
done
mkdir -m 1777 "$1"/dev/shm
ln -s /proc/self/fd "$1"/dev/fd
mount --rbind /proc "$1"/proc
exec chroot "$1" env -i HOME=/root LOGNAME=root USER=root PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c "$2"
"""


class PlainTree(Place):
    """The tree, made anew from the image; one at a time in a store."""

    starts_machines = False

    def __init__(self, image: ImageModel, store: Path, programs: Path, say: Callable[[str], None]) -> None:
        """Make it below ``store`` with the qemu-img of ``programs``; `PlaceError`, or `WheelsError`."""
        super().__init__("the plain tree", say)
        began = time.monotonic()
        self._folder = (store / "cache" / _FOLDER).absolute()
        make_private(self._folder.parent)
        self._lock = FileLock(f"{self._folder}.lock", timeout=_LOCK_TIMEOUT_S)
        self._lock.acquire()
        try:
            self._unpack(image, programs)
            say(f"{self.name} is there after {time.monotonic() - began:.1f} s")
            self.about = self.bring_project(store)
        except ImageBuildError as error:
            self.destroy()
            raise PlaceError(f"no plain tree: {error}") from error
        except PlaceError:
            self.destroy()
            raise

    def destroy(self) -> None:
        """Remove all of it."""
        remove_tree(self._folder)
        self._lock.release()

    def answers(self) -> bool:
        """Nothing can happen to it."""
        return True

    def marks(self) -> set[str]:
        """None: there is no emulator."""
        return set()

    def console(self) -> str:
        """None."""
        return _CONSOLE

    def open(self, command: str, *, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Run shell text in the tree; what it started ends with it."""
        words = as_root(["sh", "-c", _ENTER, "enter", self._folder, command])
        words = ["setpriv", "--pdeathsig", "KILL", *words]  # it does not outlive the lane
        return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _unpack(self, image: ImageModel, programs: Path) -> None:
        remove_tree(self._folder)  # of one that was killed
        self._folder.mkdir(mode=0o755)
        raw = self._folder.with_suffix(".raw")
        try:
            run([programs / "qemu-img", "convert", "-O", "raw", image.disk, raw], timeout_s=300)
            dump = f'rdump / "{self._folder}"'
            told = run_as_root(["debugfs", "-R", dump, f"{raw}?offset={PARTITION_START}"], timeout_s=300)
        finally:
            raw.unlink(missing_ok=True)
        if not (self._folder / _SERVICE).exists():
            raise PlaceError(f"{image.name} has no {_SERVICE}, or it cannot be read:\n{told}")
