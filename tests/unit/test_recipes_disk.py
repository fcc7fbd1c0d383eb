"""Disk images: partition table, boot loader's place, owners in the file system."""

import os
import struct
import subprocess

import pytest

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.disk import make_file_system, to_qcow2, write_boot_sectors
from pytest_vmfest.images.recipes.tools import find_program

MIB = 1 << 20


class FakeGrub:
    """Boot code that can be recognized."""

    boot_sector = b"B" * 512

    def __init__(self, core=b"C" * 30000):
        self._core = core

    def core(self, command_line):
        return self._core + command_line.encode()


def debugfs(disk, command):
    return subprocess.run(
        [find_program("debugfs"), "-R", command, f"{disk}?offset={MIB}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_firmware_and_kernel_find_what_they_look_for(tmp_path):
    """Boot code, then its continuation from the second sector on; one active partition up to the end."""
    disk = tmp_path / "disk.raw"
    write_boot_sectors(disk, FakeGrub(), size_mib=64, command_line=" quiet")
    with disk.open("rb") as file:
        start = file.read(MIB)
    assert start[:440] == b"B" * 440
    assert start[510:512] == b"\x55\xaa"
    assert start[512 : 512 + 30006] == b"C" * 30000 + b" quiet"
    active, kind, first, sectors = struct.unpack_from("<B3xB3xII", start, 446)
    assert (active, kind) == (0x80, 0x83)
    assert (first * 512, (first + sectors) * 512) == (MIB, 64 * MIB)
    assert start[462:510] == bytes(48)
    assert disk.stat().st_size == 64 * MIB


def test_boot_loader_that_does_not_fit_is_refused(tmp_path):
    """GRUB's core must end before the partition begins."""
    with pytest.raises(ImageBuildError, match="core"):
        write_boot_sectors(tmp_path / "disk.raw", FakeGrub(b"C" * MIB), size_mib=64, command_line="")


def test_everything_belongs_to_the_guests_root(tmp_path):
    """Whoever builds, files are root's in the guest, but those that are named; names may be strange."""
    root = tmp_path / "root"
    (root / "home/user").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/with space").write_text("content\n")
    (root / "etc/link").symlink_to("with space")
    for path in (root, *root.rglob("*")):
        os.chown(path, 4711 if os.getuid() == 0 else -1, -1, follow_symlinks=False)
    disk = tmp_path / "disk.raw"
    write_boot_sectors(disk, FakeGrub(), size_mib=64, command_line="")
    make_file_system(disk, root, {"home/user": 1000})
    for name, owner in {
        "/": 0,
        "/etc": 0,
        '"/etc/with space"': 0,
        "/etc/link": 0,
        "/home/user": 1000,
    }.items():
        told = debugfs(disk, f"stat {name}")
        assert f"User: {owner:5} Group: {owner:5}".split() == told[told.index("User:") :].split()[:4], told
    assert debugfs(disk, 'cat "/etc/with space"') == "content\n"
    checked = subprocess.run([find_program("e2fsck"), "-fn", f"{disk}?offset={MIB}"], capture_output=True)
    assert checked.returncode == 0, checked.stdout


def test_an_image_takes_no_more_room_than_its_content(tmp_path):
    """What is empty in the guest takes no space on the host."""
    raw, disk = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    write_boot_sectors(raw, FakeGrub(), size_mib=1024, command_line="")
    (tmp_path / "root").mkdir()
    make_file_system(raw, tmp_path / "root", {})
    to_qcow2(raw, disk)
    assert disk.stat().st_size < 4 * MIB
    assert raw.stat().st_blocks * 512 < 24 * MIB
