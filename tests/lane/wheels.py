"""Python packages for the guest, brought together on the host: pip in an emulated machine takes minutes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Every wheel that Linux of the last ten years takes; the guest's own is newer than all of them.
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 27, 28, 31, 34, 35, 39)]
_FOR_TESTS = ("pytest-timeout", "pytest-xdist")
_LATEST_KEPT = 3


class WheelsError(Exception):
    """The packages cannot be had; the message has pip's words."""


def requirements(project: Path, virtualbox: str) -> list[str]:
    """What the project needs, what its tests need, and the SDK of VirtualBox's release (``7.2.22``)."""
    said = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    extra = said["optional-dependencies"]["remote"]
    return sorted([*said["dependencies"], *extra, *_FOR_TESTS, f"vbox-sdk=={virtualbox}"])


def folder_with(wanted: list[str], python: str, cache: Path) -> Path:
    """A folder with ``wanted`` for ``python`` (``3.14``), from ``cache`` or new; `WheelsError` if pip fails.

    pip reads conditions such as ``python_version < "3.13"`` for the Python that it runs in: at worst that
    brings a backport too many.
    """
    key = hashlib.sha256("\n".join([python, *wanted]).encode()).hexdigest()[:16]
    target = cache / f"{python}-{key}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _pip_install(wanted, python, Path(scratch, "new"))
            Path(scratch, "new").rename(target)
    os.utime(target)
    for old in sorted(cache.glob("*-*"), key=lambda path: path.stat().st_mtime)[:-_LATEST_KEPT]:
        shutil.rmtree(old)
    return target


def _pip_install(wanted: list[str], python: str, target: Path) -> None:
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    command += [
        "--target",
        str(target),
        "--only-binary=:all:",
        "--python-version",
        python,
        *platforms,
        *wanted,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise WheelsError(f"pip found no packages for Python {python}:\n{done.stdout}")
