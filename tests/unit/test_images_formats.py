"""Recognising disk images, and refusing what is none, truncated, or not whole in one file."""

import random
import struct
import subprocess

import pytest

from pytest_vmfest.errors import ImageInvalidError
from pytest_vmfest.images import formats
from pytest_vmfest.images.formats import derive_name, inspect_disk, refuse_by_ending
from pytest_vmfest.images.sources import UrlSource

MIB = 1 << 20
KINDS = {
    "disk.qcow2": ("qcow2", []),
    "old.qcow2": ("qcow2", ["-o", "compat=0.10"]),
    "extended.qcow2": ("qcow2", ["-o", "extended_l2=on,cluster_size=128k"]),
    "compressed.qcow2": ("qcow2", ["-c"]),
    "dynamic.vdi": ("vdi", []),
    "fixed.vdi": ("vdi", ["-o", "static=on"]),
    "sparse.vmdk": ("vmdk", []),
    "stream.vmdk": ("vmdk", ["-o", "subformat=streamOptimized"]),
}


def qemu_img(*arguments):
    """Run qemu-img."""
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """A folder with a disk of every kind, each with the same data in the middle of 8 MiB."""
    folder = tmp_path_factory.mktemp("disks")
    raw = folder / "plain.raw"
    with raw.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(510)
        file.write(b"\x55\xaa")
        file.seek(MIB)
        file.write(random.Random(1).randbytes(3 * MIB + 512))
    for name, (kind, options) in KINDS.items():
        qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, folder / name)
    return folder


def inspect(path):
    """The format that is found, under the file's own name."""
    return inspect_disk(path, shown=str(path), file_name=path.name)


@pytest.fixture(params=["with qemu-img", "without qemu-img"])
def qemu_or_not(request, monkeypatch):
    """Once as it is, once as on a host that has only VirtualBox."""
    if request.param == "without qemu-img":
        monkeypatch.setattr(formats.shutil, "which", lambda program: None)


@pytest.mark.usefixtures("qemu_or_not")
@pytest.mark.parametrize("name", KINDS)
def test_whole_images_are_recognised_by_content(disks, tmp_path, name):
    """The format is what the content says, also where the ending says something else."""
    disguised = tmp_path / "cloud.img"
    disguised.write_bytes((disks / name).read_bytes())
    assert inspect(disks / name) == inspect(disguised) == KINDS[name][0]


@pytest.mark.usefixtures("qemu_or_not")
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.01])
def test_truncated_images_are_refused(disks, tmp_path, name, kept):
    """A disk whose end is missing is found out, with and without the help of qemu-img."""
    data = (disks / name).read_bytes()
    short = tmp_path / name
    short.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageInvalidError, match="truncated"):
        inspect(short)


@pytest.mark.parametrize("name", ["dynamic.vdi", "fixed.vdi", "sparse.vmdk"])
def test_one_missing_byte_is_enough(disks, tmp_path, name):
    """Where the format fixes the file's length, the message tells both lengths."""
    data = (disks / name).read_bytes()
    short = tmp_path / name
    short.write_bytes(data[:-1])
    with pytest.raises(ImageInvalidError) as caught:
        inspect(short)
    assert str(short) in str(caught.value)
    assert f"{len(data)} bytes are needed, {len(data) - 1} are there" in str(caught.value)


def test_damage_inside_is_found_by_qemu(disks, tmp_path):
    """A qcow2 whose tables contradict each other is refused with what qemu-img says, under its own name."""
    data = bytearray((disks / "disk.qcow2").read_bytes())
    refcount_table = struct.unpack_from(">Q", data, 48)[0]
    data[refcount_table : refcount_table + 8] = bytes(8)
    damaged = tmp_path / "damaged.qcow2"
    damaged.write_bytes(data)
    with pytest.raises(ImageInvalidError, match=r"damaged\.qcow2 is damaged: "):
        inspect(damaged)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_headers_are_refused(disks, tmp_path, name, monkeypatch):
    """Whatever stands in a damaged header, it is read within bounds: accepted or refused, never a crash."""
    monkeypatch.setattr(formats.shutil, "which", lambda program: None)
    whole = (disks / name).read_bytes()
    damaged = tmp_path / name
    refused = 0
    for at in range(4, 0x188, 4):
        damaged.write_bytes(whole[:at] + b"\xff\xff\xff\xf0" + whole[at + 4 :])
        try:
            inspect(damaged)
        except ImageInvalidError:
            refused += 1
    assert refused > 3


def test_empty_file(tmp_path):
    """An empty file is told as such, whatever it is called."""
    empty = tmp_path / "disk.qcow2"
    empty.touch()
    with pytest.raises(ImageInvalidError, match=r"disk\.qcow2 is empty \(0 bytes\)"):
        inspect(empty)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("page.qcow2", b"<!DOCTYPE html><html>Not found</html>", "an HTML page"),
        ("notes.img", b"dear diary\nsecond line\n", "the text 'dear diary'"),
        ("ls.vdi", b"\x7fELF" + bytes(2000), "a program"),
        ("zeros.vmdk", bytes(4096), "zeros"),
        ("noise", b"\x01\x02\x03\x80" * 1000, "01 02 03 80"),
    ],
)
def test_what_is_no_disk_is_described(tmp_path, name, content, found):
    """The message names the file and says what it is instead."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageInvalidError) as caught:
        inspect(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("name", "magic", "what", "how"),
    [
        ("a.vdi.gz", b"\x1f\x8b\x08", "compressed by gzip", "gunzip -k a.vdi.gz"),
        ("a.qcow2", b"\xfd7zXZ\0", "compressed by xz", "unxz -k a.qcow2"),
        ("a.img.bz2", b"BZh9", "compressed by bzip2", "bunzip2 -k a.img.bz2"),
        ("a.raw", b"\x28\xb5\x2f\xfd", "compressed by zstd", "unzstd a.raw"),
        ("a.box", bytes(257) + b"ustar", "a tar archive", "tar -xf a.box"),
        ("a.vhdx", b"vhdxfile", "a VHDX image", "qemu-img convert -O qcow2 a.vhdx"),
    ],
)
def test_what_has_to_be_unpacked_first(tmp_path, name, magic, what, how):
    """Compressed files, archives and foreign formats: not supported, and how to get at the disk."""
    path = tmp_path / name
    path.write_bytes(magic + bytes(600))
    with pytest.raises(ImageInvalidError) as caught:
        inspect(path)
    assert f"{what}, which is not supported" in str(caught.value)
    assert how in caught.value.hint


@pytest.mark.parametrize("ending", ["vdi.gz", "qcow2.xz", "ova", "BOX", "zip"])
def test_an_ending_can_be_enough(ending):
    """A URL of a compressed image or archive is refused before anything is downloaded."""
    with pytest.raises(ImageInvalidError, match="not supported"):
        UrlSource(f"http://127.0.0.1:9/debian.{ending}")
    refuse_by_ending("debian.qcow2", "debian.qcow2")


@pytest.mark.parametrize("name", ["diff.qcow2", "diff.vmdk", "diff.vdi"])
def test_differencing_images_are_refused(disks, tmp_path, name):
    """An image that holds only differences is refused, and the hint tells how to flatten it."""
    path = tmp_path / name
    if path.suffix == ".vdi":
        data = bytearray((disks / "dynamic.vdi").read_bytes())
        struct.pack_into("<I", data, 0x4C, 4)
        path.write_bytes(data)
    else:
        base = disks / ("disk.qcow2" if path.suffix == ".qcow2" else "sparse.vmdk")
        kind = path.suffix[1:]
        qemu_img("create", "-f", kind, "-b", base, "-F", kind, path)
    with pytest.raises(ImageInvalidError, match="only the differences") as caught:
        inspect(path)
    assert name in caught.value.hint


@pytest.mark.parametrize("part", ["disk.vmdk", "disk-flat.vmdk", "disk-s001.vmdk"])
def test_vmdk_of_several_files_is_refused(disks, tmp_path, part):
    """A VMDK that is spread over several files is refused, by whichever of them it is added."""
    kind = "monolithicFlat" if "flat" in part else "twoGbMaxExtentSparse"
    qemu_img("convert", "-O", "vmdk", "-o", f"subformat={kind}", disks / "disk.qcow2", tmp_path / "disk.vmdk")
    with pytest.raises(ImageInvalidError):
        inspect(tmp_path / part)
    with pytest.raises(ImageInvalidError, match=f"{kind}.*other files") as caught:
        inspect(tmp_path / "disk.vmdk")
    assert "qemu-img convert -O qcow2 disk.vmdk" in caught.value.hint


def test_encrypted_and_external_qcow2_are_refused(disks, tmp_path):
    """A disk that cannot be read without a secret or another file is refused for that reason."""
    data = bytearray((disks / "disk.qcow2").read_bytes())
    struct.pack_into(">I", data, 32, 2)
    (tmp_path / "luks.qcow2").write_bytes(data)
    external = f"data_file={tmp_path / 'data.raw'}"
    qemu_img("create", "-f", "qcow2", "-o", external, tmp_path / "external.qcow2", "1M")
    with pytest.raises(ImageInvalidError, match="encrypted"):
        inspect(tmp_path / "luks.qcow2")
    with pytest.raises(ImageInvalidError, match="another file"):
        inspect(tmp_path / "external.qcow2")


def raw_disk(path, *, length=4 * MIB, **patches):
    """A raw disk of zeros with bytes at offsets, given as at_OFFSET=bytes."""
    with path.open("wb") as file:
        file.truncate(length)
        for at, data in patches.items():
            file.seek(int(at.removeprefix("at_")))
            file.write(data)
    return path


def partition(start, sectors):
    """One MBR entry of a Linux partition."""
    return struct.pack("<B3xB3xII", 0x80, 0x83, start, sectors)


RAW = {
    "partitions": {"at_446": partition(2048, 4096), "at_510": b"\x55\xaa"},
    "gpt": {
        "at_446": struct.pack("<B3xB3xII", 0, 0xEE, 1, 0xFFFFFFFF), "at_510": b"\x55\xaa",
        "at_512": b"EFI PART" + bytes(24) + struct.pack("<Q", 8191),
    },
    "boot sector of a bare FAT": {"at_446": b"\xfa" * 64, "at_510": b"\x55\xaa"},
    "ext4": {"at_1028": struct.pack("<I16xI", 1024, 2), "at_1080": b"\x53\xef"},
    "xfs": {"at_0": b"XFSB" + struct.pack(">IQ", 4096, 1024)},
    "btrfs": {"at_65600": b"_BHRfS_M", "at_65648": struct.pack("<Q", 4 * MIB)},
}  # fmt: skip


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("ending", ["raw", "img"])
def test_raw_disks_need_a_plausible_content(tmp_path, kind, ending):
    """A partition table or a file system that fits into the file makes a .raw or .img a raw disk."""
    assert inspect(raw_disk(tmp_path / f"disk.{ending}", **RAW[kind])) == "raw"


@pytest.mark.parametrize("kind", ["partitions", "gpt", "ext4", "xfs", "btrfs"])
def test_truncated_raw_disks_are_refused(tmp_path, kind):
    """A raw disk that is shorter than its partitions or file system is truncated."""
    with pytest.raises(ImageInvalidError, match="truncated"):
        inspect(raw_disk(tmp_path / "disk.raw", length=MIB, **RAW[kind]))


@pytest.mark.parametrize("length", [4 * MIB, 4 * MIB + 100])
def test_raw_without_a_trace_of_a_disk(tmp_path, length):
    """Zeros, or a size that no disk has, are refused; the hint tells the way around."""
    with pytest.raises(ImageInvalidError) as caught:
        inspect(raw_disk(tmp_path / "disk.img", length=length))
    assert "qemu-img convert -f raw -O qcow2 disk.img" in caught.value.hint


def test_raw_needs_its_ending(tmp_path):
    """Without .raw or .img nothing is taken for a raw disk, however plausible."""
    with pytest.raises(ImageInvalidError, match="no disk image"):
        inspect(raw_disk(tmp_path / "disk.dd", **RAW["partitions"]))


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("debian-6.0.2.1-64bit-v0.3.vdi", "debian-6.0.2.1-64bit-v0.3"),
        ("noble-server-cloudimg-amd64.img", "noble-server-cloudimg-amd64"),
        ("Disk.VMDK", "Disk"),
        ("release-1.2", "release-1.2"),
        ("my disk (2).qcow2", "my-disk-2"),
        (".qcow2", "qcow2"),
        ("ß.raw", ""),
    ],
)
def test_derived_names(file_name, name):
    """A model is called like its file, without the ending and what no name can have."""
    assert derive_name(file_name) == name
