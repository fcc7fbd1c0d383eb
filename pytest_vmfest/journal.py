"""What a node remembers of its last commands, so that a failing test can tell them."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_vmfest.errors import CommandError, CommandTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_vmfest.remote import CommandResult

MOST_COMMANDS = 50
_OUTPUT_CHARACTERS = 4096
_COMMAND_CHARACTERS = 2000


@dataclass(frozen=True)
class Said:
    """The end of what a command wrote to a stream; ``characters`` counts all of it."""

    text: str = ""
    characters: int = 0

    @classmethod
    def of(cls, text: str) -> Said:
        """Keep the last characters of ``text``."""
        return cls(text[-_OUTPUT_CHARACTERS:], len(text))


@dataclass(frozen=True)
class Remembered:
    """One command: its text, how it ended, how long it took, and the end of its output.

    ``began`` is in seconds since the epoch. The same command with the same end several times in a row, as by
    `Node.wait_until`, is one that counts its ``times``, with the last one's output.
    """

    command: str
    began: float
    ending: str = "still running"
    duration_s: float | None = None
    stdout: Said = Said()
    stderr: Said = Said()
    times: int = 1

    @property
    def heading(self) -> str:
        """Its end in a line."""
        lasted = "" if self.duration_s is None else f" after {self.duration_s:.2f} s"
        times = f" ({self.times} times; the last one's)" if self.times > 1 else ""
        return f"{self.ending}{lasted}{times}"


class Journal:
    """The last commands of a node, bounded in number and size. Standard input is never remembered."""

    def __init__(self) -> None:
        """Nothing was run yet."""
        self._lock = threading.Lock()
        self._entries: deque[tuple[int, Remembered]] = deque(maxlen=MOST_COMMANDS)
        self._count = 0

    @property
    def commands(self) -> tuple[Remembered, ...]:
        """The last commands in the order in which they began, those that still run included."""
        with self._lock:
            return tuple(entry for _, entry in self._entries)

    @contextmanager
    def noting(self, command: str) -> Iterator[Callable[[CommandResult], CommandResult]]:
        """Remember the command that the block runs; it passes the result to what it is given.

        What leaves the block as an exception is remembered as the command's end.
        """
        __tracebackhide__ = True
        began = time.monotonic()
        entry = Remembered(_cut(command), time.time())
        number = self._begin(entry)
        ended: list[Remembered] = []

        def end(result: CommandResult) -> CommandResult:
            ended.append(_with_result(entry, result))
            return result

        try:
            yield end
        except CommandError as error:
            end(error.result)
            raise
        except BaseException as error:
            ended.append(_broken_off(entry, error, time.monotonic() - began))
            raise
        finally:
            self._end(number, ended[-1])

    def _begin(self, entry: Remembered) -> int:
        with self._lock:
            self._count += 1
            self._entries.append((self._count, entry))
            return self._count

    def _end(self, number: int, ended: Remembered) -> None:
        with self._lock:
            numbers = [one for one, _ in self._entries]
            if number not in numbers:
                return  # so many came after it that it is forgotten
            place = numbers.index(number)
            before = self._entries[place - 1][1] if place else None
            if before and (before.command, before.ending) == (ended.command, ended.ending):
                del self._entries[place - 1]
                place -= 1
                ended = replace(ended, times=before.times + 1)
            self._entries[place] = (number, ended)


def _with_result(entry: Remembered, result: CommandResult) -> Remembered:
    return replace(
        entry,
        ending=f"exit status {result.exit_status}",
        duration_s=result.duration_s,
        stdout=Said.of(result.stdout),
        stderr=Said.of(result.stderr),
    )


def _broken_off(entry: Remembered, error: BaseException, duration_s: float) -> Remembered:
    if isinstance(error, CommandTimeoutError):
        said = Said.of(error.stdout), Said.of(error.stderr)
        ending = f"not ended within {error.timeout_s:g} s"
        return replace(entry, ending=ending, duration_s=duration_s, stdout=said[0], stderr=said[1])
    first = str(error).partition("\n")[0]
    ending = f"broken off: {type(error).__name__}" + (f": {first[:300]}" if first else "")
    return replace(entry, ending=ending, duration_s=duration_s)


def _cut(command: str) -> str:
    if len(command) <= _COMMAND_CHARACTERS:
        return command
    return f"{command[:_COMMAND_CHARACTERS]} … ({len(command)} characters)"
