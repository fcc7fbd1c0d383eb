"""Images looked at and converted by the real qemu-img."""

import os
import shutil
import subprocess

import pytest

from pytest_vmfest.drivers.disk_images import ImageTool, cache_name, check_readable, find_image_program
from pytest_vmfest.errors import DriverError, DriverUnavailableError, ImageInvalidError, StoreError
from pytest_vmfest.specs import DISK_FORMATS, DirectBoot, ImageModel

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")

MIB = 1 << 20


@pytest.fixture
def tool(tmp_path):
    """The tool for a store that has nothing yet."""
    return ImageTool("qemu-img", tmp_path / "home")


@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_sound_images(tool, images, kind, model):
    """Nothing is said about a complete image, also a read-only one."""
    image = model(images / f"disk.{kind}", kind)
    check_readable(image)
    tool.inspect(image)


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vmdk"])
@pytest.mark.parametrize("share", [0.97, 0.5, 0.01])
def test_truncated_images(tool, images, tmp_path, kind, share, model):
    """An image that was cut off, anywhere, is invalid, with its path in the error."""
    whole = (images / f"disk.{kind}").read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageInvalidError, match=f"image 'thing': {cut} is "):
        tool.inspect(model(cut, kind))


@pytest.mark.parametrize("kind", DISK_FORMATS)
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>\n"])
def test_what_is_no_image(tool, tmp_path, kind, content, model):
    """An empty file, or a web page in an image's place, is no disk of any format."""
    disk = tmp_path / "disk"
    disk.write_bytes(content)
    with pytest.raises(ImageInvalidError, match="image 'thing'"):
        tool.inspect(model(disk, kind))


def test_another_format_than_it_says(tool, images, model):
    """The error tells both formats."""
    with pytest.raises(ImageInvalidError, match="holds vmdk, not qcow2"):
        tool.inspect(model(images / "disk.vmdk", "qcow2"))


def test_an_overlay_on_a_file_of_the_host(tool, tmp_path, model):
    """An image must not show the guest files from outside the store as its content."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 512)
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", disk], check=True)
    with pytest.raises(ImageInvalidError, match=r"incomplete without .*secret"):
        tool.inspect(model(disk, "qcow2"))


def test_an_overlay_within_the_store(tool, images, tmp_path, model):
    """An image that builds on another one of the store is fine."""
    base = tmp_path / "home" / "base"
    base.parent.mkdir()
    shutil.copy(images / "disk.qcow2", base)
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk], check=True)
    tool.inspect(model(disk, "qcow2"))


def test_trouble_with_the_program(images, tmp_path, model):
    """A program that cannot be run, and a full disk that it tells of, are no fault of the image."""
    image = model(images / "disk.qcow2", "qcow2")
    with pytest.raises(DriverError, match="cannot run /no/such/program"):
        ImageTool("/no/such/program", tmp_path).convert(image, tmp_path / "x", "vdi")
    full = tmp_path / "full"
    full.write_text("#!/bin/sh\necho 'qemu-img: x: Could not write: No space left on device' >&2; exit 1\n")
    full.chmod(0o755)
    with pytest.raises(StoreError, match="No space left"):
        ImageTool(str(full), tmp_path).convert(image, tmp_path / "x", "vdi")


@pytest.mark.parametrize("kind", DISK_FORMATS)
@pytest.mark.parametrize("wanted", ["vdi", "qcow2"])
def test_conversion_keeps_the_content(tool, images, tmp_path, kind, wanted, model):
    """Every format can be made of every other; two conversions to VDI have two identities."""
    image = model(images / f"disk.{kind}", kind)
    for number in range(2):
        tool.convert(image, tmp_path / str(number), wanted)
    tool.inspect(model(tmp_path / "0", wanted))
    compared = subprocess.run(["qemu-img", "compare", "-q", tmp_path / "0", image.disk], check=False)
    assert compared.returncode == 0
    if wanted == "vdi":
        uuids = {(tmp_path / str(number)).read_bytes()[0x188:0x198] for number in range(2)}
        assert len(uuids) == 2


def test_names_of_what_is_kept(images, tmp_path, model):
    """A file that changes in any way gets another name for what is made of it, with the same beginning."""
    disk = tmp_path / "disk"
    shutil.copy(images / "disk.vdi", disk)
    names = [cache_name(model(disk, "vdi"))]
    os.utime(disk, ns=(1, 1))
    names.append(cache_name(model(disk, "vdi")))
    shutil.copy(disk, tmp_path / "other")
    (tmp_path / "other").replace(disk)
    os.utime(disk, ns=(1, 1))
    names.append(cache_name(model(disk, "vdi")))
    assert len(set(names)) == 3
    assert len({name.partition("-")[0] for name in names}) == 1
    assert cache_name(model(images / "disk.vdi", "vdi")).partition("-")[0] != names[0].partition("-")[0]


def test_files_that_cannot_be_read(images, tmp_path, model):
    """A missing disk and a missing kernel are told by their paths."""
    with pytest.raises(ImageInvalidError, match=r"image 'thing': .*gone cannot be read: No such file"):
        check_readable(model(tmp_path / "gone", "raw"))
    boot = DirectBoot(tmp_path / "kernel", None, "")
    with pytest.raises(ImageInvalidError, match=r"its file .*kernel cannot be read"):
        check_readable(ImageModel("thing", images / "disk.raw", "raw", direct_boot=boot))


def test_where_the_program_is_looked_for(tmp_path):
    """In a folder that is given only there, else in PATH; the error names the place and the package."""
    assert find_image_program() == shutil.which("qemu-img")
    with pytest.raises(DriverUnavailableError, match=rf"(?s)no qemu-img in {tmp_path}.*qemu-utils"):
        find_image_program(tmp_path)
    own = tmp_path / "qemu-img"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_image_program(tmp_path) == str(own)
