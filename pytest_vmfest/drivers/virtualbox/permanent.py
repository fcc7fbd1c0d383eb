"""Who has a model's own disk, to keep what the guest writes to it: one machine at a time.

That is noted in ``home/virtualbox/permanent``, one file for each such disk, with what is to be put back
afterwards. Notes are read and written by who has VirtualBox's registry and the model to itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageInUseError
from pytest_vmfest.folders import make_private, writing_to

if TYPE_CHECKING:
    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.specs import ImageModel

_REMOTE = "remote:"


@dataclass(frozen=True)
class Note:
    """A disk that belongs to a machine for now; ``mode`` is what its file had before."""

    disk: str
    mode: int
    machine: str
    machine_id: str
    registry: str
    """The settings folder of the VirtualBox that the machine is of; see `registry_of`."""
    known: bool = False
    """Whether VirtualBox had the disk in its list before the machine was given it."""

    @property
    def is_void(self) -> bool:
        """Whether the machine's VirtualBox was on this host and is gone, and its machines with it."""
        if self.registry.startswith(_REMOTE):
            return False
        try:
            Path(self.registry).stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False  # another user's
        return False


class Notes:
    """The notes of a store."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "virtualbox" / "permanent"

    def all(self) -> list[Note]:
        """All notes; one that was not written to its end is none."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(Note(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def find(self, disk: Path) -> Note | None:
        """The note for a disk."""
        return next((note for note in self.all() if note.disk == str(disk.resolve())), None)

    def add(self, note: Note) -> None:
        """Write a note. Raises `StoreError`."""
        path = self.path(note)
        beside = path.with_suffix(".new")
        with writing_to(path):
            make_private(self._folder)
            beside.write_text(json.dumps(asdict(note)))
            beside.replace(path)

    def remove(self, note: Note) -> None:
        """Remove a note."""
        self.path(note).unlink(missing_ok=True)

    def path(self, note: Note) -> Path:
        """The file that a note is in."""
        return self._folder / f"{hashlib.sha256(note.disk.encode()).hexdigest()[:16]}.json"


def registry_of(connection: Connection) -> str:
    """What tells a VirtualBox from others that use the same store: its settings folder."""
    return ("" if connection.is_local else _REMOTE) + str(connection.vbox.home_folder)


def in_use(image: ImageModel, users: list[str], hint: str = "") -> ImageInUseError:
    """The error for a model whose own disk a machine has."""
    return ImageInUseError(
        f"image {image.name!r}: its own disk {image.disk} is in use by machine {', '.join(users)}",
        users=users,
        hint=hint or f"it is free again after: vmfest instance destroy {users[0]}",
    )
