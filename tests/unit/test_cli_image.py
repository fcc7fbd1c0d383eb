"""``vmfest image`` on a store of its own."""

import hashlib
import json

import pytest
from click.testing import CliRunner

from pytest_vmfest import FakeDriver, Server
from pytest_vmfest.cli import main
from pytest_vmfest.errors import DriverUnavailableError
from pytest_vmfest.images import recipes
from pytest_vmfest.specs import ImageModel

# A partition table (MBR) with one partition of Linux: sectors 1 to 7.
DISK = bytes(446) + bytes.fromhex("00000000830000000100000007000000") + bytes(48) + b"\x55\xaa" + b"x" * 3584


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """Keep the user's store and hypervisor out of these tests."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFEST_DRIVER", "fake")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def disk(tmp_path):
    """A raw disk image."""
    path = tmp_path / "web-1.0.raw"
    path.write_bytes(DISK)
    return path


@pytest.fixture
def recipe(monkeypatch):
    """The only recipe, called small; it counts its builds."""
    built = []

    def build(folder, identity, progress):
        built.append(folder)
        (folder / "disk.raw").write_bytes(DISK)
        return ImageModel("small", folder / "disk.raw", "raw")

    one = recipes.Recipe("small", "the smallest of all", build, check=list)
    monkeypatch.setattr(recipes, "RECIPES", {"small": one})
    return built


def vmfest(*arguments):
    """The result of `vmfest image …`."""
    return CliRunner().invoke(main, ["image", *map(str, arguments)])


def shown(name):
    """What `image show --json` tells."""
    result = vmfest("show", name, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_of_an_empty_store(recipe):
    """An empty store is told with what to do about it, and recipes are listed as what can be built."""
    result = vmfest("list")
    assert result.exit_code == 0
    assert "vmfest image add" in result.stderr
    assert "small  the smallest of all" in result.stdout
    assert json.loads(vmfest("list", "--json").stdout) == {
        "images": [],
        "recipes": [{"name": "small", "description": "the smallest of all", "installed": False}],
    }


def test_add_then_list_and_show(disk, recipe):
    """What was added is listed and shown with its metadata, and without its password."""
    result = vmfest(
        "add", disk, "--metadata", "username=admin", "--metadata", "password=secret=x",
        "--metadata", "os_64_bit=False", "--metadata", "os_family=debian", "--metadata", "os_version=12",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("web-1.0: installed, raw, ")
    assert "vmfest up web-1.0" in result.stderr
    assert "web-1.0  debian 12  raw" in vmfest("list").stdout
    told = shown("web-1.0")
    assert told["username"] == "admin"
    assert told["os_64_bit"] is False
    assert told["source"] == str(disk)
    assert told["sha256"] == hashlib.sha256(DISK).hexdigest()
    text = vmfest("show", "web-1.0").stdout
    assert "os 64 bit    no" in text
    assert "secret" not in text + json.dumps(told)
    (row,) = json.loads(vmfest("list", "--json").stdout)["images"]
    assert row == told


def test_add_under_another_name_with_its_digest(disk):
    """--name and --sha256 are handed on; a wrong digest installs nothing."""
    wrong = vmfest("add", disk, "--sha256", "0" * 64)
    assert wrong.exit_code == 1
    assert "sha256" in wrong.stderr
    digest = hashlib.sha256(DISK).hexdigest()
    assert vmfest("add", disk, "--sha256", digest, "--name", "web").exit_code == 0
    assert [row["name"] for row in json.loads(vmfest("list", "--json").stdout)["images"]] == ["web"]


@pytest.mark.parametrize(
    ("pair", "told"),
    [("colour=red", "unknown key 'colour'"), ("username", "not KEY=VALUE"), ("no_sudo=perhaps", "no_sudo")],
)
def test_add_with_wrong_metadata(disk, pair, told):
    """Metadata that cannot be is refused with status 2, naming it."""
    result = vmfest("add", disk, "--metadata", pair)
    assert result.exit_code == 2
    assert told in result.stderr


def test_add_of_what_is_no_disk(tmp_path):
    """A file that is no disk image is refused with one message."""
    (tmp_path / "page.qcow2").write_text("<html>not found</html>")
    result = vmfest("add", tmp_path / "page.qcow2")
    assert result.exit_code == 1
    assert "no disk image" in result.stderr


def test_show_of_an_unknown_image(disk):
    """An unknown name lists what there is."""
    vmfest("add", disk, "--name", "web")
    result = vmfest("show", "wep")
    assert result.exit_code == 1
    assert "installed: web" in result.stderr


def test_build_once_and_by_force(recipe):
    """A recipe's image is built once; --force makes it anew, --name calls it otherwise."""
    assert vmfest("build", "small").stdout.startswith("small: installed")
    assert vmfest("build", "small").exit_code == 0
    assert len(recipe) == 1
    assert vmfest("build", "small", "--force").exit_code == 0
    assert vmfest("build", "small", "--name", "other").exit_code == 0
    assert len(recipe) == 3
    listed = json.loads(vmfest("list", "--json").stdout)
    assert [row["name"] for row in listed["images"]] == ["other", "small"]
    assert listed["recipes"][0]["installed"] is True


def test_build_of_an_unknown_recipe(recipe):
    """An unknown recipe lists the known ones, with status 2."""
    result = vmfest("build", "large")
    assert result.exit_code == 2
    assert "known: small" in result.stderr


def test_verify(disk, tmp_path):
    """An image whose disk was changed does not pass."""
    vmfest("add", disk, "--name", "web")
    assert vmfest("verify", "web").exit_code == 0
    (changed,) = (tmp_path / "home/images/web").glob("*.raw")
    changed.chmod(0o600)
    changed.write_bytes(DISK[::-1])
    result = vmfest("verify", "web")
    assert result.exit_code == 1
    assert "has changed" in result.stderr


def test_remove(disk):
    """A removed image is gone; removing it again is an error."""
    vmfest("add", disk, "--name", "web")
    assert vmfest("remove", "web").stdout == "web: removed\n"
    assert vmfest("remove", "web").exit_code == 1


@pytest.mark.parametrize("command", [("remove", "small"), ("build", "small", "--force")], ids=" ".join)
def test_an_image_in_use_stays(recipe, command):
    """An image with clones is neither removed nor replaced, and they are named."""
    vmfest("build", "small")
    with Server("fake") as server:
        machine = server.instance("vm-1", server.images.get("small"))
    result = vmfest(*command)
    assert result.exit_code == 1
    assert "in use by vm-1" in result.stderr
    machine.destroy()
    assert vmfest(*command).exit_code == 0


def test_remove_without_a_hypervisor(disk, monkeypatch):
    """Where no hypervisor can be used, nothing runs on an image: it can be removed."""

    def refuse(self):
        raise DriverUnavailableError("not installed")

    monkeypatch.setattr(FakeDriver, "open", refuse)
    vmfest("add", disk, "--name", "web")
    assert vmfest("remove", "web").exit_code == 0
