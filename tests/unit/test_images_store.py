"""The image store: what is installed, added, built, chosen, verified and removed."""

import errno
import os
import re
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pytest_vmfest
from pytest_vmfest.errors import (
    ConfigurationError,
    ImageBuildError,
    ImageExistsError,
    ImageInUseError,
    ImageInvalidError,
    ImageNotFoundError,
    StoreError,
)
from pytest_vmfest.images import folder as store_folder
from pytest_vmfest.images import recipes
from pytest_vmfest.images.recipes import Recipe
from pytest_vmfest.images.sparse import file_digest
from pytest_vmfest.images.store import ImageStore
from pytest_vmfest.specs import DirectBoot, Identity, ImageModel, Login

MIB = 1 << 20
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
HOST_KEY = "ssh-ed25519 AAAAhost"


def make_disk(path, text="content"):
    """A small raw disk with ``text`` in it, a hole in the middle and data at its end."""
    with path.open("wb") as file:
        file.write(text.encode().ljust(510, b"\0") + b"\x55\xaa")
        file.seek(3 * MIB - 512)
        file.write(b"e" * 512)
    return path


@pytest.fixture
def steps():
    """What was told as progress."""
    return []


@pytest.fixture
def identity(tmp_path):
    """The keys of a store, as the SSH room keeps them."""
    keys = tmp_path / "home/keys"

    def make():
        keys.mkdir(parents=True, exist_ok=True)
        (keys / "id").write_text(KEY)
        return Identity(keys / "id", "ssh-ed25519 AAAAuser", KEY, HOST_KEY)

    return make


@pytest.fixture
def store(tmp_path, identity, steps):
    """A store whose folder is not there yet."""
    return ImageStore(tmp_path / "home", identity, steps.append)


@pytest.fixture
def disk(tmp_path):
    """A raw disk outside the store."""
    return make_disk(tmp_path / "debian-12.1-v0.3.img")


@pytest.fixture
def recipe(monkeypatch):
    """The only recipe, ``toy``. ``recipe.built`` counts; ``recipe.fail`` is raised at the end."""

    class Toy:
        built = 0
        fail = None

        def build(self, folder, identity, progress):
            self.built += 1
            disk = make_disk(folder / "disk.raw", f"toy {self.built}")
            for name in ("vmlinuz", "initrd"):
                (folder / name).write_text(name)
            if self.fail:
                raise self.fail
            boot = DirectBoot(folder / "vmlinuz", folder / "initrd", "console=ttyS0")
            login = Login("root", private_key=identity.private_key, host_key=identity.host_public_key)
            return ImageModel("toy", disk, "raw", login, os_family="toy", os_version="1", direct_boot=boot)

    toy = Toy()
    monkeypatch.setattr(recipes, "RECIPES", {"toy": Recipe("toy", "a toy", toy.build, list)})
    return toy


def everything(folder):
    """Every path below a folder, locks aside."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "locks" not in p.parts)


# --- looking -----------------------------------------------------------------------------------------------


def test_looking_at_an_empty_store_creates_nothing(store):
    """A store that nobody used is empty, and stays unborn when it is looked at."""
    assert store.list() == []
    assert store.names() == []
    assert not store.home.exists()


def test_unknown_name_tells_what_there_is(store, disk, recipe):
    """An unknown image lists the installed ones, the nearest name, how to add, and the recipes."""
    store.add(disk, name="debian-12")
    for ask in (store.get, store.resolve, store.verify, store.remove):
        with pytest.raises(ImageNotFoundError) as caught:
            ask("debian-21")
        message = str(caught.value)
        assert "'debian-21'" in message
        assert "did you mean 'debian-12'?" in message
        assert "installed: debian-12" in message
        assert "vmfest image add" in message
        assert "vmfest image build toy" in message


@pytest.mark.parametrize("name", ["../keys", "", ".partial-x", "a b", "a/b"])
def test_impossible_names(store, name):
    """What no image can be called is refused before any path is made of it."""
    for ask in (store.get, store.verify, store.remove):
        with pytest.raises(ConfigurationError):
            ask(name)


def test_a_damaged_model_does_not_hide_the_others(store, disk, steps):
    """A model whose model.toml is broken is told of, left out of the list, and can be removed."""
    store.add(disk, name="good")
    for name, content in (("text", "name = ["), ("keys", "format = 'raw'"), ("type", "os_64_bit = 1")):
        store.add(disk, name=name)
        path = store.home / "images" / name / "model.toml"
        path.write_text(content)
    (store.home / "images/empty").mkdir()
    steps.clear()
    assert [model.name for model in store.list()] == ["good"]
    assert {step.task for step in steps} == {"image text", "image keys", "image type", "image empty"}
    with pytest.raises(ImageInvalidError, match=r"keys/model\.toml is damaged.*\n.*image remove keys"):
        store.get("keys")
    for name in ("text", "keys", "type", "empty"):
        store.remove(name)
    assert store.names() == ["good"]


# --- adding ------------------------------------------------------------------------------------------------


def test_add_a_file(store, disk):
    """A file becomes a model under its name without ending: same bytes, read-only, in private folders."""
    model = store.add(disk)
    assert model == store.get("debian-12.1-v0.3") == store.list()[0]
    assert model.name == "debian-12.1-v0.3"
    assert model.format == "raw"
    assert model.sha256 == file_digest(disk) == file_digest(model.disk)
    assert model.disk.is_relative_to(store.home / "images" / model.name)
    assert model.disk.stat().st_mode & 0o777 == 0o400
    assert model.disk.parent.stat().st_mode & 0o777 == 0o700
    assert (model.disk.parent / "model.toml").stat().st_mode & 0o777 == 0o600
    assert everything(store.home) == [
        "images",
        "images/debian-12.1-v0.3",
        "images/debian-12.1-v0.3/disk.raw",
        "images/debian-12.1-v0.3/model.toml",
    ]


def test_holes_stay_holes(store, tmp_path):
    """A sparse disk takes no more room in the store than before, nor does one written out in full."""
    path = make_disk(tmp_path / "full.raw")
    path.write_bytes(path.read_bytes())
    model = store.add(path)
    assert model.disk.stat().st_size == 3 * MIB
    assert model.disk.stat().st_blocks * 512 < MIB


def test_a_disk_that_ends_in_zeros_keeps_its_length(store, tmp_path):
    """The hole at the end of a disk counts."""
    path = make_disk(tmp_path / "tail.raw")
    os.truncate(path, 5 * MIB)
    model = store.add(path)
    assert model.disk.stat().st_size == 5 * MIB
    assert model.sha256 == file_digest(path)


def test_progress_is_told(store, disk, steps):
    """Adding tells bytes done of the total, and the end."""
    store.add(disk, name="one")
    assert {step.task for step in steps} == {"image one"}
    copying = [step for step in steps if step.text == "copying"]
    assert [step.done for step in copying] == [MIB, 2 * MIB, 3 * MIB]
    assert {step.total for step in copying} == {3 * MIB}
    assert steps[-1].text == "installed"


def test_metadata_is_kept(store, disk, tmp_path):
    """All that is said of an image is there again in another process; its key is copied and private."""
    (tmp_path / "id").write_text(KEY)
    metadata = {
        "os_family": "debian", "os_version": "12.1", "os_64_bit": False, "os_type": "Debian",
        "packager": "apt", "description": 'quotes " and\nlines', "username": "me", "password": "pä$$",
        "sudo_password": "s", "private_key": str(tmp_path / "id"), "no_sudo": True, "network": "nat",
        "hardware": "small", "firmware": "efi", "host_key": "ssh-ed25519 AAAA",
    }  # fmt: skip
    model = store.add(disk, name="full", metadata=metadata)
    (tmp_path / "id").unlink()
    again = ImageStore(store.home, identity=pytest.fail).get("full")
    assert model == again
    key = store.home / "images/full/private_key"
    assert again.login == Login("me", "pä$$", key, "ssh-ed25519 AAAA", "s", True)
    assert key.read_text() == KEY
    assert key.stat().st_mode & 0o777 == 0o600
    assert (again.os_family, again.os_version, again.os_64_bit, again.os_type) == (
        "debian",
        "12.1",
        False,
        "Debian",
    )
    assert (again.packager, again.description) == ("apt", 'quotes " and\nlines')
    assert (again.network, again.hardware, again.firmware) == ("nat", "small", "efi")


def test_explicit_metadata_over_a_meta_file(store, disk, steps):
    """A .meta file of vmfest beside the disk is picked up; what is said explicitly wins."""
    meta = disk.with_suffix(".meta")
    meta.write_text('{:os-family :debian :os-version "12.1" :username "vmfest" :password "p" :foo 1}')
    model = store.add(disk, metadata={"password": "other"})
    assert (model.os_family, model.os_version) == ("debian", "12.1")
    assert (model.login.username, model.login.password) == ("vmfest", "other")
    assert any(":foo is left out" in step.text for step in steps)


def test_a_store_can_be_moved(store, disk, recipe, tmp_path):
    """Files are named relative to the store: after a move all is found in the new place, keys as well."""
    store.build("toy")
    store.home.rename(tmp_path / "elsewhere")
    model = ImageStore(tmp_path / "elsewhere", identity=pytest.fail).get("toy")
    files = [model.disk, model.login.private_key, model.direct_boot.kernel, model.direct_boot.initrd]
    assert all(path.is_file() and path.is_relative_to(tmp_path / "elsewhere") for path in files)


def test_wrong_metadata_and_names_cost_no_copy(store, disk):
    """Wrong arguments are told before anything is done."""
    for arguments in (
        {"metadata": {"os_famly": "debian"}},
        {"metadata": {"network": "wifi"}},
        {"name": "a/b"},
        {"sha256": "123"},
        {"sha512": "0" * 64},
    ):
        with pytest.raises(ConfigurationError):
            store.add(disk, **arguments)
    assert not store.home.exists()


@pytest.mark.parametrize("content", [None, "ssh-ed25519 AAAA me@here\n"])
def test_a_private_key_has_to_be_one(store, disk, tmp_path, content):
    """A key that is missing, or the public half, is refused with its path; nothing is installed."""
    if content:
        (tmp_path / "id").write_text(content)
    with pytest.raises(ConfigurationError, match=str(tmp_path / "id")):
        store.add(disk, metadata={"private_key": tmp_path / "id"})
    assert everything(store.home) == ["images"]


def test_the_name_is_taken(store, disk, tmp_path):
    """Adding under a name that is taken changes nothing, and says whose it is and what to do."""
    first = store.add(disk, name="one")
    with pytest.raises(ImageExistsError) as caught:
        store.add(make_disk(tmp_path / "other.raw", "other"), name="one")
    assert str(disk) in str(caught.value)
    assert "--name" in caught.value.hint
    assert "vmfest image remove one" in caught.value.hint
    assert store.get("one") == first


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digests_are_checked(store, disk, algorithm):
    """A digest that differs names both and leaves nothing; the right one, in any case, is accepted."""
    right = file_digest(disk, algorithm)
    wrong = "0" * len(right)
    with pytest.raises(ImageInvalidError, match=f"{algorithm} is {right}, not {wrong}"):
        store.add(disk, **{algorithm: wrong})
    assert everything(store.home) == ["images"]
    assert store.add(disk, **{algorithm: right.upper()}).sha256 == file_digest(disk)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"just a text\n", "the text 'just a text'"), (b"\x1f\x8b8", "gunzip -k x.img")],
)
def test_what_is_no_disk_leaves_nothing(store, tmp_path, content, said):
    """A refused file is named with what was found, and the store is as before."""
    path = tmp_path / "x.img"
    path.write_bytes(content)
    with pytest.raises(ImageInvalidError) as caught:
        store.add(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert everything(store.home) == ["images"]


def test_sources_that_are_no_files(store, tmp_path):
    """A missing file, a folder, a device and a foreign URL are told apart."""
    with pytest.raises(ImageNotFoundError, match=r"gone\.qcow2: there is no such file"):
        store.add(tmp_path / "gone.qcow2")
    with pytest.raises(ImageInvalidError, match="is a folder"):
        store.add(tmp_path)
    with pytest.raises(ImageInvalidError, match="no regular file"):
        store.add("/dev/null")
    with pytest.raises(ConfigurationError, match="no URL that images can be fetched from"):
        store.add("ftp://example.org/a.qcow2")


def test_a_source_that_changes_is_refused(store, disk, steps):
    """A file that is written to while it is copied becomes no model."""

    def write_to_it(step):
        if step.text == "copying" and step.done == MIB:
            with disk.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(ImageInvalidError, match="changed while it was copied"):
        ImageStore(store.home, identity=pytest.fail, progress=write_to_it).add(disk)
    assert store.names() == []


def test_interruption_leaves_the_store_as_before(store, disk):
    """Ctrl-C in the middle of a copy leaves no model and no rest of one."""

    def interrupt(step):
        if step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageStore(store.home, identity=pytest.fail, progress=interrupt).add(disk)
    assert everything(store.home) == ["images"]


# --- choosing ----------------------------------------------------------------------------------------------


def test_resolve_by_name_and_template(store, disk, tmp_path):
    """A name means the model of that name, a template the newest model that fits."""
    store.add(disk, name="old", metadata={"os_family": "debian", "os_version": "9"})
    new = store.add(disk, name="new", metadata={"os_family": "debian", "os_version": "12"})
    assert store.resolve("new") == store.resolve({"os_family": "debian"}) == new
    with pytest.raises(ImageNotFoundError, match="old: os_family is 'debian', not 'ubuntu'"):
        store.resolve({"os_family": "ubuntu"})


def test_template_and_an_empty_store(store):
    """With nothing installed a template fails, and tells how to install something."""
    with pytest.raises(ImageNotFoundError, match=r"no image is installed\n.*vmfest image add"):
        store.resolve({"os_family": "debian"})


@pytest.mark.parametrize("selector", ["", None, 5, ["tiny"]])
def test_resolve_nonsense(store, selector):
    """What is no name, path, URL or template is an error of configuration."""
    with pytest.raises(ConfigurationError):
        store.resolve(selector)


def test_resolve_a_path_adds_it_once(store, disk, steps, monkeypatch):
    """A path is added under its file's name, and found again without reading the disk."""
    model = store.resolve(disk)
    steps.clear()
    assert model.name == "debian-12.1-v0.3"
    monkeypatch.chdir(disk.parent)
    assert store.resolve(str(disk)) == store.resolve(disk.name) == store.resolve(f"./{disk.name}") == model
    assert steps == []


def test_resolve_a_path_whose_content_changed(store, disk, steps):
    """A disk that changed is never answered with its old model: it gets a name with its digest in it."""
    old = store.resolve(disk)
    make_disk(disk, "rebuilt")
    new = store.resolve(disk)
    assert re.fullmatch(r"debian-12\.1-v0\.3-[0-9a-f]{8}", new.name)
    assert new.sha256 == file_digest(disk) != old.sha256
    assert any("is another image than the installed debian-12.1-v0.3" in step.text for step in steps)
    assert store.resolve(disk) == new
    assert len(store.names()) == 2


def test_resolve_a_path_whose_sidecar_changed(store, disk):
    """A new sidecar makes a new model of the same disk: its login may be another one."""
    sidecar = disk.with_suffix(".toml")
    sidecar.write_text('password = "one"')
    assert store.resolve(disk).login.password == "one"
    sidecar.write_text('password = "two"')
    assert store.resolve(disk).login.password == "two"


def test_resolve_a_path_that_was_only_touched(store, disk):
    """A newer date, or another folder, makes no other image of the same content."""
    model = store.resolve(disk)
    os.utime(disk, (1, 1))
    assert store.resolve(disk) == model
    other = disk.parent / "other" / disk.name
    other.parent.mkdir()
    other.write_bytes(disk.read_bytes())
    assert store.resolve(other) == model
    assert store.names() == [model.name]


def test_resolve_prefers_what_was_added_by_hand(store, disk):
    """A path that was added under a name, with metadata, means that model."""
    added = store.add(disk, name="mine", metadata={"password": "p"})
    assert store.resolve(disk) == added


def test_resolve_a_missing_path(store):
    """A path that does not exist is told as a path, not as an unknown name."""
    with pytest.raises(ImageNotFoundError, match="there is no such file"):
        store.resolve("images/none.qcow2")
    with pytest.raises(ImageNotFoundError, match="there is no such file"):
        store.resolve(Path("tiny"))


# --- building ----------------------------------------------------------------------------------------------


def test_build_on_demand_once(store, recipe):
    """A recipe's name is built when it is first asked for, with the store's keys; then it is there."""
    model = store.resolve("toy")
    assert store.resolve("toy") == store.build("toy") == store.get("toy") == model
    assert recipe.built == 1
    assert model.disk.read_bytes().startswith(b"toy 1")
    assert model.login.private_key.read_text() == KEY
    assert model.login.host_key == HOST_KEY
    assert model.direct_boot.command_line == "console=ttyS0"
    for path in (model.disk, model.direct_boot.kernel, model.direct_boot.initrd):
        assert path.parent == store.home / "images/toy"
        assert path.stat().st_mode & 0o777 == 0o400
    assert model.sha256 == file_digest(model.disk)


def test_build_under_another_name(store, recipe, disk):
    """A recipe can be built under any free name; a name of another image is refused."""
    assert store.build("toy", name="mine").name == "mine"
    store.add(disk, name="taken")
    with pytest.raises(ImageExistsError, match="'taken' is installed already"):
        store.build("toy", name="taken")
    assert store.names() == ["mine", "taken"]


def test_force_builds_anew(store, recipe):
    """With force the model is replaced, and nothing of the old one stays."""
    store.build("toy")
    before = everything(store.home)
    assert store.build("toy", force=True).disk.read_bytes().startswith(b"toy 2")
    assert everything(store.home) == before


def test_force_mends_a_damaged_model(store, recipe):
    """With force a model is replaced that cannot even be read."""
    store.build("toy")
    (store.home / "images/toy/model.toml").write_text("damaged [")
    with pytest.raises(ImageInvalidError):
        store.build("toy")
    assert store.build("toy", force=True) == store.get("toy")


def test_force_spares_a_model_in_use(store, recipe):
    """A model that instances run on is not replaced under them."""
    store.build("toy")
    with pytest.raises(ImageInUseError, match="web-0"):
        store.build("toy", force=True, users=["web-0"])
    assert recipe.built == 1


@pytest.mark.parametrize("error", [ImageBuildError("no kernel"), KeyboardInterrupt()])
def test_a_failing_recipe_leaves_the_store_as_before(store, recipe, error):
    """Whatever ends a build, nothing of it stays, and the model that was there does."""
    store.build("toy")
    before = everything(store.home)
    recipe.fail = error
    with pytest.raises(type(error)):
        store.build("toy", force=True)
    with pytest.raises(type(error)):
        store.build("toy", name="other")
    assert everything(store.home) == before
    assert store.get("toy").disk.read_bytes().startswith(b"toy 1")


def test_unknown_recipe(store, recipe):
    """An unknown recipe lists the known ones."""
    with pytest.raises(ConfigurationError, match=r"unknown recipe 'toi'\n.*toy"):
        store.build("toi")


def test_a_replacement_that_cannot_be_put_in_place(store, recipe, monkeypatch):
    """When the last rename fails, the old model is back at once."""
    store.build("toy")
    before = everything(store.home)
    rename = Path.rename

    def fail_on_the_new_one(self, target):
        if self.name.startswith(".partial"):
            raise OSError(errno.EIO, "Input/output error", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(StoreError, match="Input/output error"):
        store.build("toy", force=True)
    assert everything(store.home) == before


# --- verifying and removing --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["disk.raw", "vmlinuz", "initrd"])
def test_verify_finds_changed_and_missing_files(store, recipe, file):
    """Any change of a model's files is found, and told with the file and what to do."""
    store.build("toy")
    store.verify("toy")
    path = store.home / "images/toy" / file
    path.chmod(0o600)
    with path.open("r+b") as opened:
        opened.write(b"!")
    with pytest.raises(ImageInvalidError, match=f"{path} has changed.*\n.*vmfest image remove toy"):
        store.verify("toy")
    path.unlink()
    with pytest.raises(ImageInvalidError, match=f"{path} is missing"):
        store.verify("toy")


def test_verify_misses_the_key(store, recipe):
    """An image whose login key is gone is of no use any more, and verify says so."""
    key = store.build("toy").login.private_key
    key.unlink()
    with pytest.raises(ImageInvalidError, match=f"{key}, the key to log in with, is missing"):
        store.verify("toy")


def test_remove(store, disk):
    """A removed model is gone wholly, and its name is free again."""
    store.add(disk)
    store.remove("debian-12.1-v0.3")
    assert everything(store.home) == ["images"]
    store.add(disk)


def test_remove_refuses_what_is_in_use(store, disk):
    """A model that instances run on stays; the error names them."""
    store.add(disk, name="one")
    with pytest.raises(ImageInUseError, match="db-0, web-0") as caught:
        store.remove("one", users=["db-0", "web-0"])
    assert caught.value.users == ("db-0", "web-0")
    assert store.names() == ["one"]


# --- trouble with the folder -------------------------------------------------------------------------------


def test_home_that_cannot_be_a_folder(tmp_path, disk, recipe):
    """A store that cannot be made is one clear error from every operation that changes it."""
    (tmp_path / "file").touch()
    store = ImageStore(tmp_path / "file/home", identity=pytest.fail)
    for change in (lambda: store.add(disk), lambda: store.build("toy")):
        with pytest.raises(StoreError) as caught:
            change()
        assert str(tmp_path / "file") in str(caught.value)
        assert "VMFEST_HOME" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_home_that_is_not_writable(store, disk):
    """A read-only store can be looked at; a change names the folder, the reason, and VMFEST_HOME."""
    model = store.add(disk, name="one")
    images = store.home / "images"
    images.chmod(0o500)
    try:
        assert store.resolve("one") == model
        for change in (lambda: store.add(disk, name="two"), lambda: store.remove("one")):
            with pytest.raises(StoreError, match=r"Permission denied\n.*VMFEST_HOME"):
                change()
    finally:
        images.chmod(0o700)


def limited_add(home, disk, limit):
    """Add a disk in a process whose files cannot grow over ``limit`` bytes; what it says."""
    code = """
        import signal, sys
        from pathlib import Path
        from pytest_vmfest.errors import StoreError
        from pytest_vmfest.images.store import ImageStore
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            ImageStore(Path(sys.argv[1]), identity=None).add(sys.argv[2])
        except StoreError as error:
            print(error)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(home), str(disk)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONPATH": str(Path(pytest_vmfest.__file__).parents[1])},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_no_room_for_the_disk(store, tmp_path):
    """When the disk does not fit, the error says so, and the room that was taken is free again."""
    disk = tmp_path / "large.raw"
    disk.write_bytes(b"x" * 510 + b"\x55\xaa" + b"x" * (3 * MIB - 512))
    said = limited_add(store.home, disk, 2 * MIB)
    assert "the image store cannot be used" in said
    assert "File too large" in said
    assert "free space" in said
    assert everything(store.home) == ["images"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(store, disk, monkeypatch, number):
    """A full disk or quota is told with what to do about it."""

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store_folder.os, "fsync", full)
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        store.add(disk)
    assert str(store.home) in str(caught.value)
    assert "free space" in caught.value.hint
    assert "VMFEST_HOME" in caught.value.hint
    assert everything(store.home) == ["images"]


def test_importing_the_store_is_cheap():
    """Requests, filelock and the recipes are loaded when they are needed, not with the store."""
    code = (
        "import sys, pytest_vmfest.images.store; "
        "print([n for n in ('requests', 'filelock', 'tomli_w', 'ssl', 'pytest_vmfest.images.recipes') "
        "if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_vmfest.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
