"""The initial RAM disk: its format, its drivers, and its script."""

import stat
import subprocess

import pytest

from pytest_vmfest.images.recipes.cpio import Cpio
from pytest_vmfest.images.recipes.initrd import GUEST, MODULES, driver_table, make_initrd

HEADER = 110


def entries(archive):
    """Name -> (mode, content) of a newc archive, read as the kernel does."""
    found = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, uid, gid, size, name_size = fields[1], fields[2], fields[3], fields[6], fields[11]
        name = archive[at + HEADER : at + HEADER + name_size - 1].decode()
        begin = at + HEADER + name_size
        begin += -begin % 4
        if name == "TRAILER!!!":
            return found
        assert (uid, gid) == (0, 0)
        found[name] = (mode, archive[begin : begin + size])
        at = begin + size
        at += -at % 4


def test_archive_holds_what_was_added():
    """Files of any length, links, folders and devices are found where the kernel looks for them."""
    archive = Cpio()
    archive.folders("dev")
    for length in range(5):
        archive.file(f"file{length}", b"x" * length, 0o755)
    archive.link("sh", "busybox")
    archive.device("dev/console", 5, 1)
    found = entries(archive.finish())
    assert [found[f"file{length}"] for length in range(5)] == [
        (stat.S_IFREG | 0o755, b"x" * length) for length in range(5)
    ]
    assert found["sh"] == (stat.S_IFLNK | 0o777, b"busybox")
    assert stat.S_ISDIR(found["dev"][0])
    assert stat.S_ISCHR(found["dev/console"][0])


def test_drivers_are_listed_with_their_dependencies():
    """A line of the table has a pattern, then modules in an order in which they can be loaded."""
    modules = {"a": b"\0depends=b\0", "b": b"\0depends=\0"}
    assert driver_table({"pci:v1*": ("a",), "pci:v2*": ("inside-the-kernel",)}, modules) == (
        "pci:v1* b a\npci:v2*\n"
    )


def test_initrd_has_the_modules_that_its_tables_name():
    """Every module that the script may load is in the archive, and nothing that the kernel has itself."""
    modules = {name: b"\0depends=\0" + name.encode() for name in MODULES if name != "af_packet"}
    found = entries(make_initrd(b"busybox", modules))
    named = set(found["modules/always"][1].decode().split())
    for bus in ("pci", "virtio", "disks"):
        named.update(
            word for line in found[f"modules/{bus}"][1].decode().splitlines() for word in line.split()[1:]
        )
    assert named == modules.keys()
    assert {name for name in named if f"modules/{name}.ko" not in found} == set()
    assert found["init"][0] & 0o111


@pytest.mark.parametrize(
    "script",
    [path for path in sorted(GUEST.rglob("*")) if path.is_file() and path.read_bytes().startswith(b"#!")],
    ids=lambda path: path.name,
)
def test_guests_scripts_are_shell(script):
    """Each script that goes into a guest can be parsed."""
    subprocess.run(["sh", "-n", script], check=True)
