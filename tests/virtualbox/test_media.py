"""Models as VirtualBox's media, in VirtualBox's own registry. No machine is started."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_vmfest.drivers.virtualbox.hardware import DISK_CONTROLLER
from pytest_vmfest.drivers.virtualbox.media import Media
from pytest_vmfest.errors import (
    ImageInUseError,
    ImageInvalidError,
    NotSupportedError,
    StoreError,
)
from pytest_vmfest.specs import DISK_FORMATS, ImageModel
from pytest_vmfest.waiting import Deadline, wait_for

MIB = 1 << 20


class Lab:
    """A store with one model in every format, and machines of the test's own in VirtualBox."""

    def __init__(self, connection, home: Path) -> None:
        self.connection = connection
        self.home = home
        self.media = Media(connection, home)
        self.stuck: list[str] = []
        store = home / "images" / "thing"
        store.mkdir(parents=True)
        raw = store / "disk.raw"
        raw.write_bytes(os.urandom(2 * MIB) + bytes(2 * MIB))
        for kind in DISK_FORMATS:
            disk = store / f"disk.{kind}"
            if kind != "raw":
                subprocess.run(["qemu-img", "convert", "-O", kind, raw, disk], check=True)
            disk.chmod(0o400)

    def image(self, kind: str = "qcow2") -> ImageModel:
        """The model in one of its formats."""
        return ImageModel("thing", self.home / "images" / "thing" / f"disk.{kind}", kind)

    def folder(self, name: str) -> Path:
        """Where a machine's files are."""
        return self.home / "virtualbox" / "machines" / name

    def create(self, name: str):
        """A machine with an empty disk controller."""
        from virtualbox.library import StorageBus

        vbox = self.connection.vbox
        file = self.folder(name) / f"{name}.vbox"
        machine = self.connection.api.create_machine(vbox, str(file), name, ["/vmfest"], "Linux_64")
        machine.add_storage_controller(DISK_CONTROLLER, StorageBus.sata)
        vbox.register_machine(machine)
        return vbox.find_machine(name)

    @contextmanager
    def locked(self, machine):
        """What of a machine can be changed."""
        from virtualbox.library import LockType

        session = self.connection.session()
        machine.lock_machine(session, LockType.write)
        try:
            yield session.machine
        finally:
            session.unlock_machine()

    def attached(self, name: str, image: ImageModel | None = None, *, permanent: bool = False):
        """A new machine with an image; gives its disk."""
        with self.locked(self.create(name)) as machine:
            attach = self.media.attach_permanent if permanent else self.media.attach
            attach(machine, image or self.image())
        return self.disk(name)

    def disk(self, name: str):
        """The medium that a machine has."""
        return self.connection.vbox.find_machine(name).get_medium(DISK_CONTROLLER, 0, 0)

    def destroy(self, name: str) -> None:
        """Remove a machine as the driver does."""
        self.media.unregister(self.connection.vbox.find_machine(name), self.folder(name))
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def media_known(self) -> list[str]:
        """The disks of this store that VirtualBox knows."""
        known = sorted(str(medium.location) for medium in self.connection.vbox.hard_disks)
        return [disk for disk in known if disk.startswith(str(self.home))]

    def bases(self) -> list[Path]:
        """The files of bases in the cache."""
        return sorted((self.home / "cache" / "virtualbox").glob("*/*.vdi"))

    def base_of(self, name: str):
        """The medium that a machine's disk stands on in the end."""
        from pytest_vmfest.drivers.virtualbox.trouble import is_null

        medium = self.disk(name)
        while not is_null(medium.parent):
            medium = medium.parent
        return medium


@pytest.fixture
def lab(connection, tmp_path):
    """A store and its machines, all removed in the end; VirtualBox knows nothing of it any more."""
    lab = Lab(connection, tmp_path / "home")
    yield lab
    for machine in connection.vbox.machines:
        if str(machine.settings_file_path).startswith(str(tmp_path)):
            lab.destroy(str(machine.name))
    assert lab.media_known() == lab.stuck


def content(disk: Path) -> bytes:
    """What a guest would read from a disk."""
    raw = disk.parent / f"{disk.name}.raw"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", disk, raw], check=True)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_machines_have_disks_of_their_own_on_one_base(lab, kind):
    """Two machines on a model of any format stand on one multi-attach base; the model is not touched."""
    from virtualbox.library import MediumType

    image = lab.image(kind)
    before = image.disk.read_bytes()
    one, two = lab.attached("one", image), lab.attached("two", image)
    assert one.id_p != two.id_p
    for name, disk in (("one", one), ("two", two)):
        assert Path(disk.location).parent == lab.folder(name) / "Snapshots"
        assert disk.parent.type_p == MediumType.multi_attach
    (base,) = lab.bases()
    assert lab.media_known() == [str(base)]
    assert base.stat().st_mode & 0o777 == 0o400
    assert content(base) == content(lab.image("raw").disk)
    lab.destroy("one")
    assert lab.media_known() == [str(base)]
    assert lab.attached("three", image).parent.id_p == two.parent.id_p
    lab.destroy("two")
    lab.destroy("three")
    assert lab.media_known() == []
    assert lab.bases() == [base]
    assert not any((lab.home / "virtualbox" / "machines").iterdir())
    assert image.disk.read_bytes() == before


def test_a_base_is_used_again_without_any_program(lab):
    """Once made, a base serves later machines, and no more is made."""
    lab.attached("one")
    lab.destroy("one")
    made = lab.bases()
    lab.media = Media(lab.connection, lab.home, program=lambda: "/no/such/program")
    lab.media.check(lab.image())
    lab.attached("two")
    assert lab.bases() == made


def test_many_at_once(lab):
    """Eight machines that are given the image at the same moment get eight disks on one base."""
    names = [f"m{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        disks = list(pool.map(lab.attached, names))
        assert len({str(disk.id_p) for disk in disks}) == 8
        assert len({str(disk.parent.id_p) for disk in disks}) == 1
        assert len(lab.bases()) == 1
        list(pool.map(lab.destroy, names))
    assert lab.media_known() == []


def test_a_machine_with_snapshots(lab):
    """Several differencing images above each other all go; the base is closed."""
    lab.attached("one")
    for snapshot in ("a", "b"):
        with lab.locked(lab.connection.vbox.find_machine("one")) as machine:
            progress, _ = machine.take_snapshot(snapshot, "", True)
            lab.connection.wait(progress, Deadline(60), "take a snapshot")
    assert str(lab.base_of("one").location) == str(lab.bases()[0])
    lab.destroy("one")
    assert lab.media_known() == []
    assert not lab.folder("one").exists()


# --- what happened behind VirtualBox's back --------------------------------------------------------


def replace_base(base: Path, image: ImageModel) -> None:
    """Put another file, with another UUID, in a base's place."""
    beside = base.with_suffix(".other")
    subprocess.run(["qemu-img", "convert", "-O", "vdi", image.disk, beside], check=True)
    beside.replace(base)


@pytest.mark.parametrize("damage", ["replaced", "missing", "cut", "empty"])
@pytest.mark.parametrize("used", [True, False])
def test_a_base_that_is_damaged_while_it_is_registered(lab, damage, used):
    """The next machine gets a sound base; a machine on the damaged one does not stop that, and can go."""
    lab.attached("one")
    (base,) = lab.bases()
    if not used:
        lab.destroy("one")
        lab.connection.vbox.open_medium(str(base), *_hard_disk())
    damage_base(lab, base, damage)
    disk = lab.attached("two")
    assert content(Path(disk.parent.location)) == content(lab.image("raw").disk)
    if used:
        assert str(disk.parent.id_p) != str(lab.disk("one").parent.id_p)
        lab.destroy("one")
    lab.destroy("two")
    assert lab.media_known() == []
    assert len(lab.bases()) == 1


def damage_base(lab, base: Path, damage: str) -> None:
    """Do to a base what its owner did not expect."""
    if damage == "missing":
        base.unlink()
    elif damage == "replaced":
        replace_base(base, lab.image())
    else:
        base.chmod(0o600)
        base.write_bytes(base.read_bytes()[: 100 if damage == "cut" else 0])
        base.chmod(0o400)


@pytest.mark.parametrize("damage", ["replaced", "missing", "cut", "empty"])
def test_a_base_that_is_damaged_while_nobody_knows_it(lab, damage):
    """The next machine gets a sound base."""
    lab.attached("one")
    lab.destroy("one")
    (base,) = lab.bases()
    damage_base(lab, base, damage)
    disk = lab.attached("two")
    assert content(Path(disk.parent.location)) == content(lab.image("raw").disk)
    assert len(lab.bases()) == 1


def test_a_base_whose_uuid_another_disk_has(lab):
    """A copy of the base that somebody registered elsewhere does no harm and stays as it is."""
    lab.attached("one")
    lab.destroy("one")
    (base,) = lab.bases()
    copy = lab.home / "copy.vdi"
    shutil.copy(base, copy)
    other = lab.connection.vbox.open_medium(str(copy), *_hard_disk())
    try:
        lab.attached("two")
        lab.destroy("two")
        assert lab.media_known() == [str(copy)]
        assert len(lab.bases()) == 1
    finally:
        other.close()


def test_a_model_that_changed(lab):
    """Machines from before keep the old base, new ones get the new content; in the end one base is kept."""
    image = lab.image("raw")
    lab.attached("old", image)
    (old,) = lab.bases()
    image.disk.unlink()
    image.disk.write_bytes(os.urandom(MIB))
    disk = lab.attached("new", image)
    assert content(Path(disk.parent.location)) == image.disk.read_bytes()
    assert len(lab.bases()) == 2
    lab.destroy("old")
    (new,) = lab.bases()
    assert new != old
    lab.destroy("new")
    assert lab.bases() == [new]


def test_a_model_that_is_gone(lab):
    """It is named in the error; machines that stand on its base keep it, and it goes with the last."""
    image = lab.image()
    disk = lab.attached("one", image)
    image.disk.unlink()
    with pytest.raises(ImageInvalidError, match=f"image 'thing': {image.disk} cannot be read"):
        lab.attached("two", image)
    assert disk.refresh_state() == disk.parent.refresh_state() == 1
    lab.destroy("two")
    lab.destroy("one")
    assert lab.bases() == []


def test_a_full_disk(lab, tmp_path):
    """A conversion that finds no space left is told as such; nothing is left of it."""
    full = tmp_path / "full"
    full.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = convert ] || exec {shutil.which("qemu-img")} "$@"\n'
        "shift 6; echo half > $1; echo 'qemu-img: No space left on device' >&2; exit 1\n"
    )
    full.chmod(0o755)
    lab.media = Media(lab.connection, lab.home, program=lambda: str(full))
    with pytest.raises(StoreError, match="No space left"), lab.media.ready(lab.image()):
        pass
    left = {path.suffix for path in (lab.home / "cache" / "virtualbox").rglob("*") if path.is_file()}
    assert left <= {".lock"}


# --- a model's own disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vdi", "vmdk"])
def test_the_models_own_disk(lab, kind):
    """It is attached itself and can be written to; afterwards it is closed, kept, and read-only as before."""
    from virtualbox.library import MediumType

    image = lab.image(kind)
    disk = lab.attached("one", image, permanent=True)
    assert (str(disk.location), disk.type_p) == (str(image.disk), MediumType.normal)
    assert image.disk.stat().st_mode & 0o777 == 0o600
    lab.destroy("one")
    assert image.disk.stat().st_mode & 0o777 == 0o400
    # VirtualBox writes to the head of what it opens.
    assert content(image.disk) == lab.image("raw").disk.read_bytes()
    assert lab.media_known() == []


@pytest.mark.parametrize("kind", ["vdi", "vmdk"])
def test_the_models_own_disk_keeps_what_was_written_after_snapshots(lab, kind):
    """Snapshots put differencing images above the disk; what is in the current ones is merged into it."""
    image = lab.image(kind)
    lab.attached("one", image, permanent=True)
    expected = bytearray(lab.image("raw").disk.read_bytes())
    root = ""
    for number, snapshot in enumerate(["a", "b", "c"]):
        write(lab.disk("one"), number * MIB, bytes([number + 1]) * 512)
        if snapshot != "c":
            expected[number * MIB : number * MIB + 512] = bytes([number + 1]) * 512
        with lab.locked(lab.connection.vbox.find_machine("one")) as machine:
            progress, made = machine.take_snapshot(snapshot, "", True)
            lab.connection.wait(progress, Deadline(60), "take a snapshot")
            root = made if snapshot == "b" else root
    with lab.locked(lab.connection.vbox.find_machine("one")) as machine:
        progress = machine.restore_snapshot(machine.find_snapshot(root))
        lab.connection.wait(progress, Deadline(60), "go back")
    write(lab.disk("one"), 3 * MIB, b"\7" * 512)
    expected[3 * MIB : 3 * MIB + 512] = b"\7" * 512
    lab.destroy("one")
    assert content(image.disk) == expected
    assert image.disk.stat().st_mode & 0o777 == 0o400
    assert lab.media_known() == []


def write(medium, at: int, data: bytes) -> None:
    """Write to a disk, as a guest would."""
    opened = medium._i.openForIO(True, "")
    assert opened.write(at, data) == len(data)
    opened.close()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_format_that_cannot_be_written(lab, kind):
    """Only VirtualBox's own formats can be written to; the error says so, before and while attaching."""
    refused = pytest.raises(NotSupportedError, match=f"cannot write to {kind}")
    with refused, lab.media.ready(lab.image(kind), permanent=True):
        pass
    with pytest.raises(NotSupportedError, match=f"cannot write to {kind}"):
        lab.attached("one", lab.image(kind), permanent=True)


def test_one_user_at_a_time(lab):
    """While a machine has the model's disk, nobody else gets it, nor a copy of it; the user is named."""
    image = lab.image("vdi")
    lab.attached("owner", image, permanent=True)
    other = Media(lab.connection, lab.home)
    for attempt in (other.attach, other.attach_permanent):
        lab.create("two")
        with lab.locked(lab.connection.vbox.find_machine("two")) as machine:
            with pytest.raises(ImageInUseError, match="in use by machine owner") as caught:
                attempt(machine, image)
        assert caught.value.users == ("owner",)
        lab.destroy("two")
    for permanent in (True, False):
        refused = pytest.raises(ImageInUseError, match="in use by machine owner")
        with refused, other.ready(image, permanent=permanent):
            pass
    lab.destroy("owner")
    lab.attached("two", image, permanent=True)


def test_the_models_own_disk_is_in_use_by_a_foreign_machine(lab):
    """A machine that somebody made by hand on the file is a user as well."""
    image = lab.image("vdi")
    with lab.locked(lab.create("foreign")) as machine:
        medium = lab.connection.vbox.open_medium(str(image.disk), *_hard_disk())
        machine.attach_device(DISK_CONTROLLER, 0, 0, _hard_disk()[0], medium)
        machine.save_settings()
    with pytest.raises(ImageInUseError, match="in use by machine foreign"):
        lab.attached("two", image, permanent=True)
    assert image.disk.stat().st_mode & 0o777 == 0o400
    lab.destroy("foreign")
    assert lab.media_known() == [str(image.disk)]
    lab.attached("three", image, permanent=True)
    lab.destroy("three")
    assert lab.media_known() == [str(image.disk)]
    medium.close()


def test_nobody_waits_for_the_registry_while_a_model_is_converted(lab, monkeypatch):
    """Who wants a model's own disk waits for the model before taking the registry's lock."""
    image = lab.image("vdi")
    asked = threading.Event()
    hold = lab.media._bases.hold

    def asking(model):
        asked.set()
        return hold(model)

    with ThreadPoolExecutor(1) as pool, hold(image):
        monkeypatch.setattr(lab.media._bases, "hold", asking)
        attached = pool.submit(lab.attached, "one", image, permanent=True)
        assert asked.wait(10)
        lab.connection._registry_lock.acquire(timeout=5)
        lab.connection._registry_lock.release()
        assert not attached.done()
    assert str(attached.result().location) == str(image.disk)


def test_a_machines_disk_that_nobody_uses(lab):
    """One that a killed process made and did not save is closed and removed with the next machine."""
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    lab.folder("half").mkdir(parents=True)
    file = lab.folder("half") / "scsi-0.vdi"
    medium = lab.connection.vbox.create_medium("VDI", str(file), AccessMode.read_write, DeviceType.hard_disk)
    lab.connection.wait(medium.create_base_storage(MIB, [MediumVariant.standard]), Deadline(20), "no disk")
    assert lab.media_known() == [str(file)]
    lab.create("one")
    lab.destroy("one")
    assert lab.media_known() == []
    assert not file.exists()


def test_the_models_own_disk_is_a_copy_of_a_registered_one(lab):
    """The file that was added as a model may be registered itself: the model gets a UUID of its own."""
    image = lab.image("vdi")
    original = lab.home / "original.vdi"
    shutil.copy(image.disk, original)
    medium = lab.connection.vbox.open_medium(str(original), *_hard_disk())
    try:
        disk = lab.attached("one", image, permanent=True)
        assert str(disk.id_p) != str(medium.id_p)
        lab.destroy("one")
        assert lab.media_known() == [str(original)]
    finally:
        medium.close()


# --- killed in the middle --------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox.connection import connect
from pytest_vmfest.drivers.virtualbox.hardware import DISK_CONTROLLER
from pytest_vmfest.drivers.virtualbox.media import Media
from pytest_vmfest.specs import ImageModel
from virtualbox import library

home, disk, kind, machine_name, how, count = sys.argv[1:]
left = int(count)

def counted(owner, name):
    call = getattr(owner, name)
    def counting(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return call(*arguments)
    setattr(owner, name, counting)

connection = connect(DriverSettings(Path(home)))
session = connection.session()
connection.vbox.find_machine(machine_name).lock_machine(session, library.LockType.write)
machine = session.machine
for name in ("attach_device", "detach_device", "save_settings"):
    counted(library.IMachine, name)
type_p = library.IMedium.type_p
counted(library.IVirtualBox, "open_medium")
def set_type(medium, value):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    type_p.fset(medium, value)
library.IMedium.type_p = property(type_p.fget, set_type)
getattr(Media(connection, Path(home)), how)(machine, ImageModel("thing", Path(disk), kind))
os.kill(os.getpid(), 9)
"""


def attach_and_be_killed(lab, name: str, image: ImageModel, how: str, steps: int) -> None:
    """Let another process attach the image, and kill it after some of VirtualBox's calls."""
    from virtualbox.library import SessionState

    machine = lab.create(name)
    arguments = [str(lab.home), str(image.disk), image.format, name, how, str(steps)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: machine.session_state == SessionState.unlocked, Deadline(30), what="the lock's end")


@pytest.mark.parametrize("steps", range(9))
def test_killed_while_attaching(lab, steps):
    """Whatever was done, the next machine gets its disk, before and after the half-made one is removed."""
    attach_and_be_killed(lab, "half", lab.image(), "attach", steps)
    lab.attached("two")
    lab.destroy("half")
    lab.attached("three")
    lab.destroy("two")
    lab.destroy("three")
    # VirtualBox's service forgets only at its end what was attached and never saved.
    lab.stuck = lab.media_known()
    assert len(lab.stuck) == (1 if steps == 2 else 0)


def test_killed_while_removing(lab):
    """Differencing images without a machine go when another machine is removed, and the base with them."""
    from virtualbox.library import CleanupMode

    lab.attached("one")
    lab.connection.vbox.find_machine("one").unregister(CleanupMode.full)
    assert list((lab.folder("one") / "Snapshots").iterdir())
    assert lab.media_known() == [str(path) for path in lab.bases()]
    lab.attached("two")
    lab.destroy("two")
    assert lab.media_known() == []
    assert not any((lab.folder("one") / "Snapshots").iterdir())


def test_a_machine_whose_folder_is_gone(lab):
    """It is unregistered all the same, and nothing of it stays known."""
    lab.attached("one")
    shutil.rmtree(lab.folder("one"))
    lab.destroy("one")
    assert lab.media_known() == []
    assert list(lab.connection.vbox.machines) == []


@pytest.mark.parametrize("steps", range(4))
def test_killed_while_attaching_the_models_own_disk(lab, steps):
    """Once the half-made machine is removed, the model's disk is free, whole, and read-only as before."""
    image = lab.image("vdi")
    attach_and_be_killed(lab, "half", image, "attach_permanent", steps)
    lab.destroy("half")
    assert image.disk.stat().st_mode & 0o777 == 0o400
    lab.attached("two", image, permanent=True)
    lab.destroy("two")
    assert image.disk.stat().st_mode & 0o777 == 0o400
    lab.attached("three", image)
    lab.destroy("three")
    lab.stuck = lab.media_known()
    assert len(lab.stuck) == (1 if steps == 2 else 0)


def _hard_disk():
    from virtualbox.library import AccessMode, DeviceType

    return DeviceType.hard_disk, AccessMode.read_write, False
