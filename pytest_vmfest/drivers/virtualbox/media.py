"""Models as VirtualBox's media: machines on differencing images of a base, or on a model's own disk.

A base (see `Bases`) is a multi-attach medium: every machine that it is attached to gets a differencing image
of its own. It is registered while machines use it, and no longer. What VirtualBox knows of bases is looked at
before each use, and a base that is not as it should be is passed over for a new one: its file may have been
replaced or removed behind VirtualBox's back, or a process killed while it had it attached. Machines that
stand on such a base keep it.

Whoever wants both locks takes the model's (`Media.ready`) before that of VirtualBox's registry: the former is
held while a disk is converted, the latter is what everybody waits for.
"""

from __future__ import annotations

import stat
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.disk_images import check_readable, find_image_program
from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.drivers.virtualbox.bases import Bases
from pytest_vmfest.drivers.virtualbox.hardware import DISK_CONTROLLER, opened_media
from pytest_vmfest.drivers.virtualbox.permanent import Note, Notes, in_use, registry_of
from pytest_vmfest.errors import NotSupportedError, WaitTimeoutError, all_or_raise, clean_up_after
from pytest_vmfest.folders import writing_to
from pytest_vmfest.progress import silent
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

    from virtualbox.library import IMachine, IMedium

    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import ImageModel

_WRITABLE_FORMATS = ("vdi", "vmdk")
_DELETE_TIMEOUT_S = 60.0
_MERGE_TIMEOUT_S = 600.0  # reads and writes all that a guest has written


class Media:
    """Images for machines. ``program`` finds ``qemu-img``; it is asked when an image must be read."""

    def __init__(
        self,
        connection: Connection,
        home: Path,
        program: Callable[[], str] = find_image_program,
        progress: Progress = silent,
    ) -> None:
        """Remember all that. Touches no disk."""
        self._connection = connection
        self._registry = registry_of(connection)
        self._bases = Bases(home, self._registry, program, progress)
        self._notes = Notes(home)
        self._machines = home.resolve() / "virtualbox" / "machines"
        self._templates = home.resolve() / "templates"

    def freezing_bytes(self, image: ImageModel) -> int:
        """About what is written of disks until others stand on a frozen machine of the image.

        That is a base for itself, if there is none, its own disk as a whole, and a base made of that.
        """
        copies = 2 if self._bases.find(image) else 3
        return copies * self._bases.content_bytes(image)

    def check(self, image: ImageModel) -> None:
        """Raise `ImageInvalidError` if the model's disk is not there, or no complete disk of its format."""
        check_readable(image)
        if not self._bases.find(image):
            self._bases.inspect(image)

    @contextmanager
    def ready(self, image: ImageModel, *, permanent: bool = False) -> Iterator[None]:
        """Have the model to oneself, with its base made: the long part of what comes before attaching.

        To be entered before the registry's lock is taken, so that nobody waits for a conversion with that.
        Errors: `ImageInvalidError`, `ImageInUseError`, `StoreError`; for ``permanent``, `NotSupportedError`.
        """
        if permanent:
            _check_writable(image)
        check_readable(image)
        with trouble.translated(_cannot_attach(image)):
            self._check_free(image)
        with self._bases.hold(image):
            with trouble.translated(_cannot_attach(image)):
                self._check_free(image)
                if not permanent and not self._bases.find(image):
                    self._bases.make(image)
            yield

    def attach(self, machine: IMachine, image: ImageModel) -> None:
        """Give a machine, which a session of the caller's has locked, a new differencing image of the model.

        Errors: those of `ready`, and `DriverError`.
        """
        with (
            self.ready(image),
            self._connection.registry_lock(),
            trouble.translated(_cannot_attach(image)),
        ):
            base = self._usable_base(image)
            if not _is_multi_attach(base):
                _make_multi_attach(machine, base)
            _attach(machine, base)
            machine.save_settings()

    def attach_permanent(self, machine: IMachine, image: ImageModel) -> None:
        """Give a machine, which a session of the caller's has locked, the model's own disk, to write to.

        Errors: `NotSupportedError` for formats that VirtualBox cannot write, `ImageInUseError` that names
        the machine that has the disk, `ImageInvalidError`, `StoreError`, `DriverError`.
        """
        _check_writable(image)
        check_readable(image)
        with (
            self._bases.hold(image),
            self._connection.registry_lock(),
            trouble.translated(_cannot_attach(image)),
        ):
            self._settle_permanent()
            machine_id = str(machine.id_p)
            self._check_free(image, but_for=machine_id)
            self._bases.inspect(image)
            disk = image.disk.resolve()
            if others := self._users_of(disk, but_for=machine_id):
                raise in_use(image, others)
            note = self._notes.find(disk) or Note(
                disk=str(disk),
                mode=stat.S_IMODE(disk.stat().st_mode),
                machine=str(machine.name),
                machine_id=machine_id,
                registry=self._registry,
                known=disk in self._registered(),
            )
            self._notes.add(note)
            try:
                with writing_to(disk):
                    disk.chmod(note.mode | stat.S_IRUSR | stat.S_IWUSR)
                _attach(machine, self._open_permanent(disk))
                machine.save_settings()
            except BaseException as error:
                clean_up_after(error, lambda: self._give_back(note))
                raise

    def unregister(self, machine: IMachine, folder: Path) -> None:
        """Remove a machine that is off from VirtualBox, with what its media in ``folder`` had for themselves.

        Other media that were opened for machines are closed once no machine uses them; those that VirtualBox
        knew before stay known. The files of both stay, with what was written to them. Raises `DriverError`,
        and `DestroyError` that tells what could not be removed.
        """
        from virtualbox.library import CleanupMode

        doing = f"machine in {folder} cannot be removed"
        deadline = Deadline(_DELETE_TIMEOUT_S)
        with self._connection.registry_lock(), trouble.translated(doing):
            opened = []
            if machine.accessible:
                opened = opened_media(machine)
                if self._writes_to_what_stays(machine, folder):
                    self._merge_snapshots(machine, doing)
            # VirtualBox returns differencing images before what they stand on.
            media = machine.unregister(CleanupMode.full)
            all_or_raise(
                *(partial(self._let_go, medium, folder, deadline) for medium in media),
                lambda: self._connection.wait(machine.delete_config([]), deadline, doing),
                partial(self._close_opened, opened),
                self.sweep,
            )

    def sweep(self) -> None:
        """Close what nobody uses of the driver's media, and remove bases that nothing will use again.

        Killed processes may have left such.
        """
        doing = "VirtualBox's list of media cannot be cleared"
        with self._connection.registry_lock(), trouble.translated(doing):
            self._settle_permanent()
            live = self._live()
            for path, medium in self._registered().items():
                # That of a template is only known while it is written; VirtualBox cannot close it then.
                is_template = path.is_relative_to(self._templates)
                if path.parent == self._bases.folder or self._is_of_a_machine(path) or is_template:
                    self._close_unused(medium, live)
            self._bases.tidy(self._registered().keys())

    # --- bases -------------------------------------------------------------------------------------

    def _usable_base(self, image: ImageModel) -> IMedium:
        registered = self._registered()
        for path in self._bases.find(image):
            base = self._use(path, registered.get(path))
            if base is not None:
                return base
        return self._open(self._bases.make(image))

    def _use(self, path: Path, registered: IMedium | None) -> IMedium | None:
        """The medium at ``path``, if it can be attached."""
        if registered is not None:
            live = self._live()
            if _is_used(registered, live):
                return registered if _is_well(registered) else None
            # To be opened anew: what machines have had that are gone belongs to no settings, and is refused.
            if self._close_unused(registered, live):
                return None
        try:
            return self._open(path)
        except Exception as error:
            if trouble.code_of(error) is None or trouble.is_dead(error):
                raise
            # No disk, or one that was copied and is registered elsewhere; in neither case used from here.
            path.unlink(missing_ok=True)
            return None

    def _close_unused(self, medium: IMedium, live: Set[str]) -> bool:
        """Close a medium, and what stands on it, as far as no machine uses it; whether it is still open.

        One that cannot be closed now stays for the next `sweep`: VirtualBox may just be merging it, and it
        does not forget a machine that is gone if that had the medium attached without ever saving it.
        """
        try:
            children = [self._close_unused(child, live) for child in medium.children]
            if any(children):
                return True
            if any(str(user) in live for user in medium.machine_ids):
                return True
            path = Path(str(medium.location))
            medium.close()
        except Exception as error:
            if trouble.code_of(error) is None or trouble.is_dead(error):
                raise
            return True
        if self._is_of_a_machine(path):
            path.unlink(missing_ok=True)
        return False

    def _let_go(self, medium: IMedium, folder: Path, deadline: Deadline) -> None:
        """Delete a medium that a machine had for itself."""
        path = Path(str(medium.location))
        doing = f"disk {path} cannot be removed"
        if not path.resolve().is_relative_to(folder.resolve()):
            return
        with trouble.translated(doing):
            try:
                self._connection.wait(medium.delete_storage(), deadline, doing)
            except Exception as error:
                if isinstance(error, WaitTimeoutError):
                    raise
                # A differencing image whose base is gone cannot be deleted, but closed.
                medium.close()
        with writing_to(path):
            path.unlink(missing_ok=True)

    # --- the user's own media ----------------------------------------------------------------------

    def _close_opened(self, opened: list[Path]) -> None:
        live, files = self._live(), {path.resolve() for path in opened}
        vbox = self._connection.vbox
        for medium in (*vbox.hard_disks, *vbox.dvd_images) if files else ():
            if Path(str(medium.location)).resolve() in files:
                self._close_unused(medium, live)

    def _writes_to_what_stays(self, machine: IMachine, folder: Path) -> bool:
        """Whether a disk of the machine's is a file that is neither its own nor a base."""
        from virtualbox.library import DeviceType

        for attachment in machine.medium_attachments:
            medium = attachment.medium
            if attachment.type_p != DeviceType.hard_disk:
                continue
            while not trouble.is_null(medium):
                path = Path(str(medium.location)).resolve()
                if not path.is_relative_to(folder.resolve()):
                    if path.exists() and path.parent != self._bases.folder:
                        return True
                    break
                medium = medium.parent
        return False

    # --- models' own disks -------------------------------------------------------------------------

    def _check_free(self, image: ImageModel, but_for: str = "") -> None:
        """Raise `ImageInUseError` if a machine has the model's own disk."""
        note = self._notes.find(image.disk)
        if note is None or note.machine_id == but_for:
            return
        if note.registry != self._registry:
            if note.is_void:
                return
            hint = (
                f"the machine is of the VirtualBox with its settings in {note.registry}: destroy it from "
                f"there, or if that VirtualBox is no more, remove {self._notes.path(note)}"
            )
            raise in_use(image, [note.machine], hint)
        if note.machine_id in self._live():
            raise in_use(image, [note.machine])

    def _users_of(self, disk: Path, but_for: str) -> list[str]:
        medium = self._registered().get(disk)
        ids = set() if medium is None else {str(user) for user in medium.machine_ids} - {but_for}
        return [
            # One whose settings cannot be read has no name.
            str(machine.name) if machine.accessible else str(machine.settings_file_path)
            for machine in self._connection.vbox.machines
            if str(machine.id_p) in ids
        ]

    def _open_permanent(self, disk: Path) -> IMedium:
        try:
            return self._open(disk)
        except Exception as error:
            if not trouble.ignoring(error, trouble.OBJECT_NOT_FOUND):
                raise
            # What VirtualBox says when another file with the same UUID is registered.
            return self._open(disk, new_uuid=True)

    def _merge_snapshots(self, machine: IMachine, doing: str) -> None:
        """Bring what a machine wrote since its snapshots into the model's own disk, which is to keep it."""
        from virtualbox.library import LockType

        deadline = Deadline(_MERGE_TIMEOUT_S)
        session = self._connection.session()
        machine.lock_machine(session, LockType.shared)
        try:
            while machine.snapshot_count:
                last = machine.find_snapshot("")
                while children := last.children:
                    last = children[0]
                self._connection.wait(session.machine.delete_snapshot(str(last.id_p)), deadline, doing)
        finally:
            session.unlock_machine()

    def _settle_permanent(self) -> None:
        """Put back the disks of machines that are gone."""
        live = self._live()
        for note in self._notes.all():
            is_mine = note.registry == self._registry
            if note.machine_id not in live if is_mine else note.is_void:
                self._give_back(note)

    def _give_back(self, note: Note) -> None:
        disk = Path(note.disk)
        medium = self._registered().get(disk)
        if medium is not None and not note.known and note.registry == self._registry:
            self._close_unused(medium, self._live())
        if disk.exists():
            with writing_to(disk):
                disk.chmod(note.mode)
        self._notes.remove(note)

    # --- VirtualBox --------------------------------------------------------------------------------

    def _live(self) -> set[str]:
        """The ids of all machines that there are."""
        return {str(machine.id_p) for machine in self._connection.vbox.machines}

    def _registered(self) -> dict[Path, IMedium]:
        """The disks that VirtualBox knows and that stand on no other, by the paths of their files."""
        return {Path(str(medium.location)).resolve(): medium for medium in self._connection.vbox.hard_disks}

    def _is_of_a_machine(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._machines)

    def _open(self, path: Path, *, new_uuid: bool = False) -> IMedium:
        from virtualbox.library import AccessMode, DeviceType

        return self._connection.vbox.open_medium(
            str(path), DeviceType.hard_disk, AccessMode.read_write, new_uuid
        )


def _cannot_attach(image: ImageModel) -> str:
    return f"image {image.name!r}: its disk cannot be attached"


def _check_writable(image: ImageModel) -> None:
    if image.format not in _WRITABLE_FORMATS:
        raise NotSupportedError(
            f"image {image.name!r}: VirtualBox cannot write to {image.format} (permanent=True)",
            hint="install the image as vdi or vmdk; without permanent, every machine has a disk of its own",
        )


def _attach(machine: IMachine, medium: IMedium) -> None:
    from virtualbox.library import DeviceType

    machine.attach_device(DISK_CONTROLLER, 0, 0, DeviceType.hard_disk, medium)


def _is_multi_attach(medium: IMedium) -> bool:
    from virtualbox.library import MediumType

    return bool(medium.type_p == MediumType.multi_attach)


def _is_used(medium: IMedium, live: Set[str]) -> bool:
    """Whether a machine that there is has the medium, or one that stands on it."""
    try:
        return any(str(user) in live for user in medium.machine_ids) or any(
            _is_used(child, live) for child in medium.children
        )
    except Exception as error:
        # It has just been closed or merged.
        if trouble.code_of(error) is None or trouble.is_dead(error):
            raise
        return False


def _is_well(medium: IMedium) -> bool:
    """Whether a base that machines use has its file, and is not one that a killed process left attached."""
    from virtualbox.library import MediumState

    if medium.refresh_state() == MediumState.inaccessible:
        return False
    return _is_multi_attach(medium)


def _make_multi_attach(machine: IMachine, medium: IMedium) -> None:
    """Make a medium multi-attach: possible once a machine's settings know it, and while none has it attached.

    What is attached has to be saved before it is detached: else VirtualBox counts it as attached for ever.
    """
    from virtualbox.library import MediumType

    _attach(machine, medium)
    try:
        machine.save_settings()
    finally:
        machine.detach_device(DISK_CONTROLLER, 0, 0)
        machine.save_settings()
    medium.type_p = MediumType.multi_attach
