"""Base disks made of models, by the real qemu-img, and notes of who has a model's own disk."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers.virtualbox.bases import Bases
from pytest_vmfest.drivers.virtualbox.media import Media
from pytest_vmfest.drivers.virtualbox.permanent import Note, Notes
from pytest_vmfest.errors import ImageInUseError, ImageInvalidError, NotSupportedError, StoreError
from pytest_vmfest.specs import ImageModel

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")

MIB = 1 << 20


@pytest.fixture
def home(tmp_path):
    """The store's folder."""
    return tmp_path / "home"


@pytest.fixture
def image(tmp_path):
    """A model with a raw disk."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(MIB) + bytes(MIB))
    return ImageModel("thing", disk, "raw")


@pytest.fixture
def bases(home):
    """The bases of the store."""
    return Bases(home, "/settings", lambda: "qemu-img")


def make(bases, image):
    """Make a base."""
    with bases.hold(image):
        return bases.make(image)


def files(home):
    """The endings of all files in the cache."""
    return {path.suffix for path in (home / "cache").rglob("*") if path.is_file()}


def program(tmp_path, script):
    """Something in qemu-img's place, which does another thing where it is to convert."""
    path = tmp_path / "qemu-img"
    real = shutil.which("qemu-img")
    path.write_text(f'#!/bin/sh\n[ "$1" = convert ] || exec {real} "$@"\n{script}\n')
    path.chmod(0o755)
    return str(path)


def test_a_base_has_the_models_content(bases, image, tmp_path):
    """It is a read-only VDI in a private folder, found as long as the model is what it was."""
    assert bases.find(image) == []
    base = make(bases, image)
    assert bases.find(image) == [base]
    assert (base.stat().st_mode & 0o777, base.parent.stat().st_mode & 0o777) == (0o400, 0o700)
    compared = subprocess.run(["qemu-img", "compare", "-q", base, image.disk], check=False)
    assert compared.returncode == 0
    os.utime(image.disk, ns=(1, 1))
    assert bases.find(image) == []


def test_no_path_is_used_twice(bases, image):
    """A base that is made anew has another name and another UUID."""
    first = make(bases, image)
    content = first.read_bytes()
    first.unlink()
    second = make(bases, image)
    assert second != first
    assert second.read_bytes()[0x188:0x198] != content[0x188:0x198]


def test_one_home_by_two_paths(bases, image, home, tmp_path):
    """Bases are in one place, however the way to the store is written."""
    base = make(bases, image)
    (tmp_path / "link").symlink_to(home)
    assert Bases(tmp_path / "link", "/settings", lambda: "qemu-img").find(image) == [base]


def test_tidying(bases, image, home):
    """One base of the model as it is stays, and all that are used; nothing stays of a model that is gone."""
    old = make(bases, image)
    image.disk.write_bytes(os.urandom(MIB))
    new = [make(bases, image) for _ in range(2)]
    bases.tidy({old})
    assert old.exists()
    assert sum(path.exists() for path in new) == 1
    bases.tidy(())
    assert not old.exists()
    (kept,) = bases.find(image)
    bases.tidy(())
    assert kept.exists()
    image.disk.unlink()
    bases.tidy({kept})
    assert kept.exists()
    bases.tidy(())
    assert files(home) == {".lock"}


def test_a_model_that_changes_while_it_is_read(image, home, tmp_path):
    """It is read again; one that never comes to rest is no image."""
    once = program(
        tmp_path,
        f"[ -e {tmp_path}/done ] || touch -d @1 {image.disk};"
        f' touch {tmp_path}/done; exec {shutil.which("qemu-img")} "$@"',
    )
    base = make(Bases(home, "/settings", lambda: once), image)
    assert Bases(home, "/settings", lambda: once).find(image) == [base]
    always = program(
        tmp_path, f'echo >> {image.disk}; truncate -s +511 {image.disk}; exec {shutil.which("qemu-img")} "$@"'
    )
    with pytest.raises(ImageInvalidError, match="changes while it is read"):
        make(Bases(home, "/settings", lambda: always), image)
    assert not any(base.parent.glob("new-*"))


def test_a_full_disk(image, home, tmp_path):
    """It is told as such, and nothing is left of the base."""
    full = program(tmp_path, "shift 6; echo half > $1; echo 'qemu-img: No space left on device' >&2; exit 1")
    with pytest.raises(StoreError, match="No space left"):
        make(Bases(home, "/settings", lambda: full), image)
    assert files(home) == {".lock"}


def test_a_cache_that_cannot_be_written(bases, image, home):
    """The error names the place."""
    home.mkdir()
    (home / "cache").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*virtualbox"):
        make(bases, image)


def test_killed_while_converting(bases, image, home, tmp_path):
    """What a killed process left is removed by the next one that makes a base of the model."""
    deadly = program(tmp_path, "shift 6; echo half > $1; kill -9 $PPID; exit 1")
    code = (
        "import sys; from pathlib import Path; from pytest_vmfest.specs import ImageModel;"
        "from pytest_vmfest.drivers.virtualbox.media import Media;"
        "from types import SimpleNamespace as N;"
        "vbox = N(machines=[], home_folder='/settings');"
        "media = Media(N(vbox=vbox, is_local=True), Path(sys.argv[1]), lambda: sys.argv[2])\n"
        "with media.ready(ImageModel('thing', Path(sys.argv[3]), 'raw')): pass"
    )
    done = subprocess.run([sys.executable, "-c", code, home, deadly, image.disk], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(bases.folder.glob("new-*"))) == 1
    assert bases.find(image) == []
    prepare(home, image)
    assert not any(bases.folder.glob("new-*"))
    assert len(bases.find(image)) == 1


def test_many_prepare_at_once(bases, image, home):
    """One converts, the others wait."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: prepare(home, image), range(8)))
    assert len(bases.find(image)) == 1


def test_checking(image, home, tmp_path):
    """A damaged model is refused until a base was made of it; then no program is needed."""
    with pytest.raises(ImageInvalidError, match=r"'thing': .*gone cannot be read"):
        Media(connection(), home).check(ImageModel("thing", tmp_path / "gone", "raw"))
    with pytest.raises(ImageInvalidError, match="holds raw, not vdi"):
        Media(connection(), home).check(ImageModel("thing", image.disk, "vdi"))
    prepare(home, image)
    Media(connection(), home, lambda: "/no/such/program").check(image)


def connection(*machines):
    """As much of VirtualBox as is asked for the owner of a disk."""
    known = [SimpleNamespace(id_p=name, name=name) for name in machines]
    return SimpleNamespace(vbox=SimpleNamespace(machines=known, home_folder="/settings"), is_local=True)


def prepare(home, image, *machines, permanent=False):
    """Make what a machine on the model needs, while VirtualBox has the machines."""
    with Media(connection(*machines), home).ready(image, permanent=permanent):
        pass


def test_a_model_whose_own_disk_is_in_use(image, home):
    """Nobody else can use it while its machine is there."""
    Notes(home).add(Note(str(image.disk), 0o400, "owner", "owner", "/settings"))
    with pytest.raises(ImageInUseError, match=r"(?s)in use by machine owner.*instance destroy") as caught:
        prepare(home, image, "owner")
    assert caught.value.users == ("owner",)
    prepare(home, image)


def test_a_model_whose_own_disk_another_virtualbox_uses(image, home, tmp_path):
    """Its machine cannot be seen; the error tells where it is, and what to do when that is no more."""
    Notes(home).add(Note(str(image.disk), 0o400, "owner", "owner", "remote:/settings"))
    note = next((home / "virtualbox" / "permanent").iterdir())
    with pytest.raises(ImageInUseError, match=f"(?s)of the VirtualBox .*remote:/settings.*remove {note}"):
        prepare(home, image, "owner")
    (tmp_path / "settings").mkdir()
    Notes(home).add(Note(str(image.disk), 0o400, "owner", "owner", str(tmp_path / "settings")))
    with pytest.raises(ImageInUseError, match=f"of the VirtualBox .*{tmp_path}"):
        prepare(home, image, "owner")
    (tmp_path / "settings").rmdir()
    prepare(home, image, "owner")


def test_every_virtualbox_has_its_bases(bases, image, home):
    """One does not know what another uses, and leaves it alone."""
    mine = make(bases, image)
    other = Bases(home, "/settings of another", lambda: "qemu-img")
    assert other.find(image) == []
    image.disk.write_bytes(os.urandom(MIB))
    theirs = make(other, image)
    other.tidy({theirs})
    assert mine.exists()
    assert Bases(home, "/settings", lambda: "qemu-img").find(image) == []


def test_holding_a_model(bases, image, home):
    """Who holds it may do so again; nobody else, of whichever VirtualBox, can meanwhile."""
    other = Bases(home, "/settings of another", lambda: "qemu-img")
    with ThreadPoolExecutor(1) as pool:
        with bases.hold(image), bases.hold(image):
            made = pool.submit(make, other, image)
            with pytest.raises(TimeoutError):
                made.result(0.2)
            assert other.find(image) == []
            bases.make(image)
        assert made.result(60).exists()


def test_formats_that_cannot_be_written(image, home):
    """VirtualBox could only read them."""
    with pytest.raises(NotSupportedError, match="cannot write to raw"):
        prepare(home, image, permanent=True)


def test_notes(home, image, tmp_path):
    """A note is found by its disk, however the way there is written; a damaged one is none."""
    notes = Notes(home)
    assert notes.all() == []
    note = Note(str(image.disk), 0o400, "owner", "id", "/settings")
    notes.add(note)
    (tmp_path / "link").symlink_to(image.disk)
    assert notes.find(tmp_path / "link") == notes.find(image.disk) == note
    (path,) = (home / "virtualbox" / "permanent").iterdir()
    (path.parent / "damaged.json").write_text("{")
    assert notes.all() == [note]
    notes.remove(note)
    notes.remove(note)
    assert notes.find(image.disk) is None
