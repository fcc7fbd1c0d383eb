"""What a connection into a guest can do, whatever carries it (SSH, or the fake driver's memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_vmfest.waiting import Deadline

# Bytes that are no UTF-8 survive a round trip: str(…) for reading, the bytes properties for the exact data.
ENCODING = "utf-8"
ENCODING_ERRORS = "surrogateescape"


@dataclass(frozen=True)
class Completed:
    """A command's end as the wire tells it. ``exit_status`` is 128 + N for a command killed by signal N."""

    exit_status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class CommandResult:
    """What a command in the guest did.

    ``stdout`` and ``stderr`` are decoded as UTF-8; bytes that are none come back exactly from
    ``stdout_bytes`` and ``stderr_bytes``. ``exit_status`` is 128 + N for a command killed by signal N.
    """

    command: str
    exit_status: int
    stdout: str
    stderr: str
    duration_s: float

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.exit_status == 0

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output, byte for byte."""
        return self.stdout.encode(ENCODING, ENCODING_ERRORS)

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error, byte for byte."""
        return self.stderr.encode(ENCODING, ENCODING_ERRORS)


class Remote(Protocol):
    """A connection into a guest. Calls from several threads at once are allowed.

    Errors: `ConnectionLostError` when the connection breaks, `TransferError` for files,
    `CommandTimeoutError` when ``deadline`` passes.
    """

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as is known without asking the guest."""
        ...

    def execute(self, script: str, *, input: bytes | None, deadline: Deadline) -> Completed:
        """Run ``script`` by the login user's shell, both streams read together, ``input`` on its stdin."""
        ...

    def put(self, local: Path, remote: str, deadline: Deadline) -> None:
        """Copy a file or a folder (recursively, with modes) to the path ``remote``."""
        ...

    def get(self, remote: str, local: Path, deadline: Deadline) -> None:
        """Copy a file or a folder (recursively, with modes) from the path ``remote``."""
        ...

    def read_bytes(self, remote: str, deadline: Deadline) -> bytes:
        """The content of a file."""
        ...

    def write_bytes(self, remote: str, data: bytes, deadline: Deadline) -> None:
        """Create or replace a file."""
        ...

    def close(self) -> None:
        """Close the connection; allowed more than once."""
        ...
