"""Taking kernels and modules apart."""

import gzip
import lzma
import struct

import pytest

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.kernel import (
    compression,
    decompress,
    in_order,
    module_name,
    modules_from_tree,
    quick_kernel,
    read_modules,
)

PVH_NOTE = struct.pack("<III", 4, 8, 18) + b"Xen\0" + struct.pack("<Q", 0x1000000)
KERNEL = b"\x7fELF" + bytes(1000) + PVH_NOTE
SETUP_SECTORS = 3


def bzimage(payload):
    """A bzImage as far as it matters here: the header's signature, and where the payload is."""
    image = bytearray((SETUP_SECTORS + 1) * 512)
    image[0x1F1] = SETUP_SECTORS
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + bytes(16) + payload + b"trailing"


def module(*depends):
    """A module as far as it matters here: its .modinfo section."""
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=it\0"


def no_unpacker(kind, data):
    raise AssertionError(f"asked to unpack {kind}")


@pytest.mark.parametrize(
    "payload",
    [gzip.compress(KERNEL), lzma.compress(KERNEL) + struct.pack("<I", len(KERNEL))],
    ids=["gzip", "xz"],
)
def test_the_elf_kernel_is_taken_out(payload):
    """The kernel inside a bzImage comes out uncompressed, whatever the standard library can unpack."""
    assert quick_kernel(bzimage(payload), no_unpacker) == KERNEL


def test_other_compressions_go_to_the_unpacker():
    """What the standard library cannot do is passed on without the size that the kernel's build appends."""
    asked = []

    def unpacker(kind, data):
        asked.append((kind, data))
        return KERNEL

    packed = b"\x28\xb5\x2f\xfd packed"
    assert quick_kernel(bzimage(packed + struct.pack("<I", len(KERNEL))), unpacker) == KERNEL
    assert asked == [("zstd", packed)]


def test_a_kernel_without_pvh_stays_compressed():
    """QEMU cannot start an ELF kernel without the note, so the bzImage is kept."""
    image = bzimage(gzip.compress(b"\x7fELF" + bytes(1000)))
    assert quick_kernel(image, no_unpacker) == image


@pytest.mark.parametrize("image", [bytes(4096), bzimage(gzip.compress(b"no kernel"))])
def test_what_is_no_kernel_is_refused(image):
    """Neither a file without the header nor a payload that is no ELF passes as a kernel."""
    with pytest.raises(ImageBuildError, match="vmlinuz"):
        quick_kernel(image, no_unpacker)


def test_compressions_are_told_by_their_magic():
    """Modules and kernels come compressed in several ways, or not at all."""
    assert compression(b"\x02\x21\x4c\x18....") == "lz4"
    assert compression(b"\x7fELF") is None
    assert decompress(b"\x7fELF", no_unpacker) == b"\x7fELF"
    assert decompress(lzma.compress(b"data"), no_unpacker) == b"data"


@pytest.mark.parametrize("path", ["kernel/virtio-rng.ko", "a/virtio_rng.ko.xz", "virtio-rng.ko.zst"])
def test_modules_have_the_kernels_names(path):
    """The name does not tell of compression and spells hyphens as underscores."""
    assert module_name(path) == "virtio_rng"


def test_modules_come_with_what_they_depend_on():
    """Dependencies are found over several steps, each reading only what is not known yet."""
    package = {
        "ext4": module("jbd2", "mbcache"),
        "jbd2": module("crc-x"),
        "mbcache": module(),
        "crc_x": module(),
    }
    asked = []

    def read(names):
        asked.append(sorted(names))
        return {name: package[name] for name in names & package.keys()}

    modules = read_modules(["ext4", "gone"], read, frozenset({"gone"}))
    assert modules == package
    assert asked == [["ext4", "gone"], ["jbd2", "mbcache"], ["crc_x"]]
    assert in_order(["ext4", "mbcache", "builtin"], modules) == ["crc_x", "jbd2", "mbcache", "ext4"]


def test_a_missing_module_is_named():
    """A module that neither exists nor is part of the kernel ends the build."""
    with pytest.raises(ImageBuildError, match="no module nosuch"):
        read_modules(["nosuch"], lambda names: {}, frozenset())


def test_modules_of_an_installed_kernel(tmp_path):
    """They are found by name below the file system's modules; those within the kernel need no file."""
    folder = tmp_path / "usr/lib/modules/6.1.0"
    (folder / "kernel/drivers").mkdir(parents=True)
    (folder / "kernel/drivers/virtio-rng.ko").write_bytes(module("rng-core"))
    (folder / "modules.builtin").write_text("kernel/drivers/rng-core.ko\n")
    modules = modules_from_tree(tmp_path, ["virtio_rng"], frozenset(), no_unpacker)
    assert modules == {"virtio_rng": module("rng-core")}


def test_compressed_modules_of_an_installed_kernel(tmp_path):
    """Modules come decompressed, whatever the distribution compresses them by."""
    folder = tmp_path / "usr/lib/modules/7.2/kernel/drivers"
    folder.mkdir(parents=True)
    (folder / "sd_mod.ko.xz").write_bytes(lzma.compress(module("scsi")))
    (folder / "scsi.ko.zst").write_bytes(b"\x28\xb5\x2f\xfdsqueezed")
    modules = modules_from_tree(
        tmp_path, ["sd_mod"], frozenset(), lambda kind, data: f"{kind} {data[4:]!r}".encode()
    )
    assert modules == {"sd_mod": module("scsi"), "scsi": b"zstd b'squeezed'"}
