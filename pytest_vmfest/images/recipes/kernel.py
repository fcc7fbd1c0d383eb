"""Taking a distribution's kernel package apart: the bare kernel, and modules with what they depend on."""

from __future__ import annotations

import gzip
import lzma
import re
import struct
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    Unpacker = Callable[[str, bytes], bytes]

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
}

# The ELF note XEN_ELFNOTE_PHYS32_ENTRY: size of the name, size of the address, 18, "Xen".
_PVH_ENTRY = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")


def compression(data: bytes) -> str | None:
    """The name of the compression that ``data`` starts like: gzip, xz, zstd, lz4 (legacy frames) or None."""
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)


def decompress(data: bytes, unpacker: Unpacker) -> bytes:
    """``data`` decompressed, or as it is. ``unpacker`` is called with what the standard library cannot do."""
    kind = compression(data)
    if kind is None:
        return data
    if kind == "xz":
        return lzma.decompress(data)
    if kind == "gzip":
        return gzip.decompress(data)
    return unpacker(kind, data)


def quick_kernel(bzimage: bytes, unpacker: Unpacker) -> bytes:
    """The uncompressed ELF kernel inside a bzImage, or the bzImage where that cannot be started.

    QEMU starts the former by the PVH protocol, without the decompression that emulation makes slow.
    """
    kernel = _bare_kernel(bzimage, unpacker)
    return kernel if _PVH_ENTRY.search(kernel) else bzimage


def _bare_kernel(bzimage: bytes, unpacker: Unpacker) -> bytes:
    # The header's payload_offset and payload_length (Linux, Documentation/arch/x86/boot.rst).
    if bzimage[0x202:0x206] != b"HdrS":
        raise ImageBuildError("the kernel package's vmlinuz is no x86 bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if compression(payload) in ("lz4", "xz", "zstd"):
        payload = payload[:-4]  # the kernel's build appends the size of what it compressed
    kernel = decompress(payload, unpacker)
    if not kernel.startswith(b"\x7fELF"):
        raise ImageBuildError("the kernel package's vmlinuz holds no ELF kernel that could be unpacked")
    return kernel


def module_name(path: str) -> str:
    """The name that the kernel gives to the module in a file.

    >>> module_name("kernel/drivers/virtio/virtio-rng.ko.xz")
    'virtio_rng'
    """
    return PurePosixPath(path).name.split(".ko")[0].replace("-", "_")


def modules_from_tree(
    root: Path, wanted: Iterable[str], optional: frozenset[str], unpacker: Unpacker
) -> dict[str, bytes]:
    """`read_modules` from the (only) kernel that is installed in the file system ``root``."""
    paths = {module_name(path.name): path for path in root.glob("usr/lib/modules/*/kernel/**/*.ko*")}
    builtin: set[str] = set()
    for listing in root.glob("usr/lib/modules/*/modules.builtin"):
        builtin.update(builtin_modules(listing.read_text()))

    def read(names: frozenset[str]) -> dict[str, bytes]:
        return dict.fromkeys(names & builtin, b"") | {
            name: decompress(paths[name].read_bytes(), unpacker) for name in names & paths.keys()
        }

    return read_modules(wanted, read, optional)


def builtin_modules(listing: str) -> set[str]:
    """Names of the modules in the file ``modules.builtin``, which are part of the kernel itself."""
    return {module_name(line) for line in listing.splitlines()}


def read_modules(
    wanted: Iterable[str], read: Callable[[frozenset[str]], Mapping[str, bytes]], optional: frozenset[str]
) -> dict[str, bytes]:
    """The modules ``wanted`` and all that they depend on, by name.

    ``read`` returns the (decompressed) modules of the given names, as far as they exist, empty for those that
    are part of the kernel itself; it is called again for dependencies that were not asked for. Raises
    `ImageBuildError` for a module that does not exist and is not ``optional``.
    """
    names = list(wanted)
    known: dict[str, bytes] = {}
    while missing := frozenset(_closure(names, known)) - known.keys():
        found = dict.fromkeys(missing & optional, b"")
        found.update(read(missing))
        if lost := missing - found.keys():
            raise ImageBuildError(f"the kernel package has no module {', '.join(sorted(lost))}")
        known.update(found)
    return {name: content for name, content in known.items() if content}


def in_order(names: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """Those of ``names`` that are ``modules``, with their dependencies, each after its own."""
    return [name for name in _closure(names, modules) if name in modules]


def _closure(names: Iterable[str], known: Mapping[str, bytes]) -> dict[str, None]:
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            for needed in _depends(known.get(name, b"")):
                visit(needed)
            ordered[name] = None

    for name in names:
        visit(name)
    return ordered


def _depends(module: bytes) -> list[str]:
    # The .modinfo section: "key=value" strings, each ended by a NUL.
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    names = match[1].decode().split(",") if match else []
    return [name.replace("-", "_") for name in names if name]
