"""Overlays on images, by the real qemu-img."""

import shutil
import subprocess

import pytest

from pytest_vmfest.drivers.qemu.disks import Disks
from pytest_vmfest.errors import DriverError, ImageInvalidError
from pytest_vmfest.specs import DISK_FORMATS

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")


@pytest.fixture
def disks(tmp_path):
    """The tool, with an empty cache."""
    return Disks("qemu-img", tmp_path / "home", tmp_path / "home" / "cache")


@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_sound_images(disks, images, tmp_path, kind, model):
    """An overlay on a sound image of any format has the image's content."""
    image = model(images / f"disk.{kind}", kind)
    disks.check(image)
    for number in range(2):
        disks.create_overlay(image, tmp_path / f"overlay-{number}")
    compared = subprocess.run(
        ["qemu-img", "compare", tmp_path / "overlay-1", images / "disk.raw"], check=False
    )
    assert compared.returncode == 0
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 1


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vmdk"])
@pytest.mark.parametrize("share", [0.97, 0.5, 0.01])
def test_truncated_images(disks, images, tmp_path, kind, share, model):
    """An image that was cut off, anywhere, is invalid, with its path in the error; nothing is left."""
    whole = (images / f"disk.{kind}").read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole[: int(len(whole) * share)])
    for attempt in (disks.check, lambda image: disks.create_overlay(image, tmp_path / "overlay")):
        with pytest.raises(ImageInvalidError, match=f"image 'thing': {cut} is "):
            attempt(model(cut, kind))
    assert not (tmp_path / "overlay").exists()
    assert not (tmp_path / "home").exists()


def test_a_changed_image_is_checked_anew(disks, images, tmp_path, model):
    """What is remembered of an image ends with it, and does not pile up."""
    disk = tmp_path / "disk"
    shutil.copy(images / "disk.qcow2", disk)
    disks.create_overlay(model(disk, "qcow2"), tmp_path / "overlay")
    disk.write_bytes(b"something else")
    with pytest.raises(ImageInvalidError):
        disks.create_overlay(model(disk, "qcow2"), tmp_path / "overlay")
    disk.write_bytes((images / "disk.qcow2").read_bytes())
    disks.create_overlay(model(disk, "qcow2"), tmp_path / "overlay")
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 1


def test_an_empty_overlay_is_small(disks, images, tmp_path, model):
    """A machine's disk takes next to nothing until it writes."""
    disks.create_overlay(model(images / "disk.qcow2", "qcow2"), tmp_path / "overlay")
    assert (tmp_path / "overlay").stat().st_blocks * 512 <= 64 * 1024


def test_the_proof_is_used_again(disks, images, tmp_path, model):
    """The second machine on an image needs no program at all."""
    image = model(images / "disk.qcow2", "qcow2")
    disks.create_overlay(image, tmp_path / "one")
    without = Disks("/no/such/program", tmp_path / "home", tmp_path / "home" / "cache")
    without.check(image)
    without.create_overlay(image, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_snapshots_of_a_disk(disks, images, tmp_path, model):
    """Tags are listed in the order they were made; applying one brings the content back."""
    disk = tmp_path / "overlay"
    disks.create_overlay(model(images / "disk.qcow2", "qcow2"), disk)
    assert disks.snapshot_tags(disk) == []
    disks.create_snapshot(disk, "off:b")
    subprocess.run(["qemu-io", "-c", "write -P 7 0 4096", disk], check=True, stdout=subprocess.DEVNULL)
    disks.create_snapshot(disk, "off:a")
    assert disks.snapshot_tags(disk) == ["off:b", "off:a"]
    disks.apply_snapshot(disk, "off:b")
    assert (
        subprocess.run(["qemu-img", "compare", "-q", disk, images / "disk.raw"], check=False).returncode == 0
    )
    disks.delete_snapshot(disk, "off:b")
    assert disks.snapshot_tags(disk) == ["off:a"]
    with pytest.raises(DriverError, match="qemu-img"):
        disks.apply_snapshot(disk, "off:b")
