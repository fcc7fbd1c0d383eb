"""Reading and unpacking Debian packages without installing them, and running programs from them."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.tools import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"

# Packages that `unpacker` needs unpacked, and which of their files.
UNPACKER_PACKAGES = ("zstd", "lz4")
UNPACKER_FILES = ("usr/bin/zstd", "usr/bin/lz4", f"{LIBRARIES}/*.so*")

# Folders that are links into /usr on a merged-/usr system; packages may still ship them as folders.
_MERGED = ("bin", "sbin", "lib", "lib64")


def merged(name: str) -> str:
    """The place of a package's file on a system where /bin, /sbin and /lib are links into /usr.

    >>> merged("./lib/x86_64-linux-gnu/libc.so.6")
    'usr/lib/x86_64-linux-gnu/libc.so.6'
    """
    parts = PurePosixPath(name).parts
    return str(PurePosixPath("usr", *parts) if parts and parts[0] in _MERGED else PurePosixPath(*parts))


def pick(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The contents of the regular files of ``package`` whose merged path ``wanted`` is true of."""
    found: dict[str, bytes] = {}
    with _contents(package) as archive:
        for member in archive:
            name = merged(member.name)
            if member.isfile() and wanted(name):
                found[name] = _read(archive, member)
    return found


def unpack(packages: Iterable[Path], folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write files and links of ``packages`` below ``folder``, at their merged paths."""
    for package in packages:
        with _contents(package) as archive:
            for member in archive:
                name = merged(member.name)
                if not (member.isfile() or member.issym()) or not wanted(name):
                    continue
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if member.issym():
                    target.symlink_to(member.linkname)
                else:
                    target.write_bytes(_read(archive, member))
                    target.chmod(member.mode & 0o755)


def run_unpacked(tree: Path, program: str, *arguments: str | Path, timeout_s: float) -> str:
    """Run a program that was unpacked below ``tree`` with the loader and the libraries from there."""
    command: list[str | Path] = [
        tree / LOADER,
        "--library-path",
        tree / LIBRARIES,
        tree / program,
        *arguments,
    ]
    return run(command, timeout_s=timeout_s)


def unpacker(tree: Path) -> Callable[[str, bytes], bytes]:
    """Decompression (kind, data) by zstd and lz4, which were unpacked below ``tree``."""

    def unpack_data(program: str, data: bytes) -> bytes:
        packed, plain = tree / "packed", tree / "plain"
        packed.write_bytes(data)
        # zstd is told of its output by an option, lz4 by position.
        output = ("-o", plain) if program == "zstd" else (plain,)
        run_unpacked(tree, f"usr/bin/{program}", "-q", "-f", "-d", packed, *output, timeout_s=60)
        return plain.read_bytes()

    return unpack_data


def linked_libraries(tree: Path, program: Path) -> list[Path]:
    """The libraries below ``tree`` that ``program`` is linked with, directly or not, and the loader."""
    command: list[str | Path] = [
        tree / LOADER,
        "--inhibit-cache",
        "--library-path",
        tree / LIBRARIES,
        "--list",
        program,
    ]
    listing = run(command, timeout_s=20)
    found = {
        name: Path(place) for name, place in re.findall(r"^\s*(\S+) => (not|/\S+)", listing, re.MULTILINE)
    }
    # The loader goes on to look in this host's own folders.
    if missing := [name for name, path in found.items() if not path.is_relative_to(tree)]:
        raise ImageBuildError(f"{program.name} needs {', '.join(missing)}, which no package brought")
    return list(found.values())


@contextlib.contextmanager
def _contents(package: Path) -> Iterator[tarfile.TarFile]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        with process.stdout, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield archive
    except tarfile.TarError as error:
        raise ImageBuildError(f"{package.name} cannot be read: {error}") from error
    finally:
        process.kill()
        process.wait()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = archive.extractfile(member)
    assert source is not None
    return source.read()
