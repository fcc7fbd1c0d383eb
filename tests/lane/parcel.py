"""What the guest is sent: the project, its Python packages and the image `tiny`, as one stream."""

from __future__ import annotations

import gzip
import io
import tarfile
from importlib import metadata
from pathlib import Path
from typing import IO

PROJECT = Path(__file__).resolve().parents[2]
ROOT = "/root/lane"
"""The lane's folder in the guest."""
WORK = f"{ROOT}/work"
"""Where machines live in there: the store and the temporary folder."""
KEPT = f"{ROOT}/kept"
"""Where their logs are kept."""
PYTHON = f"{ROOT}/venv/bin/python3"
"""The interpreter that has the project and its packages."""

_OF_PROJECT = (
    "pytest_vmfest",
    "tests",
    "examples",
    "benchmarks",
    "conftest.py",
    "pyproject.toml",
    "README.md",
)
_OF_STORE = ("images/tiny", "keys")
_PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\n"
_COMMAND = f"#!{PYTHON}\nimport sys\nfrom pytest_vmfest.cli import main\nsys.exit(main())\n"


def write(stream: IO[bytes] | gzip.GzipFile, *, packages: Path, python: str, store: Path) -> None:
    """Write the tar that belongs into `ROOT`: ``packages`` for ``python`` (``3.14``), `tiny` of ``store``."""
    site = f"venv/lib/python{python}/site-packages"
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in _OF_PROJECT:
            tar.add(PROJECT / name, f"project/{name}", filter=_without_caches)
        tar.add(packages, site, filter=_without_caches)
        for name in _OF_STORE:
            tar.add(store / name, f"work/home/{name}", filter=_owned_by_root)
        _add_text(tar, "venv/pyvenv.cfg", _PYVENV)
        _add_text(tar, "venv/bin/vmfest", _COMMAND, mode=0o755)
        _add_text(tar, f"{site}/vmfest.pth", f"{ROOT}/project\n")
        _add_installation(tar, site)


def _add_installation(tar: tarfile.TarFile, site: str) -> None:
    """What tells pytest of the plugin."""
    installed = metadata.distribution("pytest-vmfest")
    for name in ("METADATA", "entry_points.txt"):
        text = installed.read_text(name)
        assert text is not None, f"pytest-vmfest is installed without {name}"
        _add_text(tar, f"{site}/pytest_vmfest-{installed.version}.dist-info/{name}", text)


def _add_text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    tar.addfile(entry, io.BytesIO(text.encode()))


def _without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name == "__pycache__" else _owned_by_root(entry)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
