"""The fake guest's shell: runs what `syntax.py` has read."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pytest_vmfest.drivers.fake import syntax, tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.drivers.fake.files import FakeFiles
    from pytest_vmfest.remote import Completed

ENCODING = "utf-8"
NOT_FOUND = 127
USAGE = 2

# The user's text in what `pytest_vmfest.shell.compose` makes of it.
_WRAPPED = re.compile(r"\{\n(.*)\n\}\Z", re.DOTALL)


class ExitShellError(Exception):
    """The script ends now, with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Streams:
    """What a command reads from and writes to. Two that are the same object are one stream."""

    stdin: bytes = b""
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)

    def say(self, text: str) -> None:
        """Write to standard output."""
        self.stdout += text.encode(ENCODING, "surrogateescape")

    def complain(self, text: str) -> int:
        """Write a line to standard error; returns the exit status 1."""
        self.stderr += f"{text}\n".encode(ENCODING, "surrogateescape")
        return 1


class Host(Protocol):
    """What the shell needs of the guest that it runs in."""

    @property
    def files(self) -> FakeFiles:
        """The guest's files."""
        ...

    def answer(self, command: str, stdin: bytes) -> Completed | None:
        """The reply that a user has given for a command; None if there is none."""
        ...

    def write_console(self, text: str) -> None:
        """Write to the serial port."""
        ...


Builtin: TypeAlias = "Callable[[Shell, list[str], Streams], int]"
"""A command of the guest: its arguments without its name; returns the exit status."""


class Shell:
    """One running shell: its user, variables and working directory."""

    def __init__(
        self,
        host: Host,
        commands: dict[str, Builtin],
        *,
        user: str,
        variables: dict[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        """A shell of ``user`` that knows ``commands``, in the folder or else at home."""
        self.host = host
        self.user = user
        self.home = "/root" if user == "root" else f"/home/{user}"
        self.variables = {"HOME": self.home, "USER": user, "PATH": "/usr/bin:/bin"} | (variables or {})
        self.folder = folder or self.home
        self.stop_on_error = False
        self._commands = commands
        self._status = 0
        # An assignment's status is that of the last $(…) in it.
        self._substituted_status = 0
        # Whether the last failure is one that `set -e` overlooks.
        self._excused = False

    def run(self, text: str, streams: Streams) -> int:
        """Run a script and return its exit status."""
        try:
            program = syntax.parse(text)
        except syntax.ShellSyntaxError as error:
            wrapped = _WRAPPED.search(text)
            reply = self.host.answer(wrapped[1] if wrapped else text, streams.stdin)
            if reply is not None:
                return _deliver(reply, streams)
            streams.complain(f"fake shell: {error}")
            return USAGE
        try:
            return self._sequence(program, streams)
        except ExitShellError as end:
            return end.status

    def child(self, *, user: str | None = None) -> Shell:
        """A shell started from this one: it inherits, and changes nothing here."""
        if user is not None and user != self.user:
            return Shell(self.host, self._commands, user=user, folder=self.folder)
        return Shell(self.host, self._commands, user=self.user, variables=self.variables, folder=self.folder)

    def path(self, path: str) -> str:
        """An absolute path for one that may start in the working directory."""
        return posixpath.join(self.folder, path)

    # --- control -----------------------------------------------------------------------------------

    def _sequence(self, sequence: tree.Sequence, streams: Streams) -> int:
        if not sequence.chains:
            self._status = 0
        for chain in sequence.chains:
            self._chain(chain, streams)
        return self._status

    def _chain(self, chain: tree.Chain, streams: Streams) -> None:
        last = len(chain.links) - 1
        for position, (operator, pipeline) in enumerate(chain.links):
            if position and (operator == "&&") != (self._status == 0):
                continue
            self._status = self._pipeline(pipeline, streams)
            # POSIX, `set -e`: a failure that && or || has looked at does not end the script, nor does a
            # compound command whose failure is that one.
            if position < last or pipeline.negated:
                self._excused = True
            elif self._status and self.stop_on_error and not self._excused:
                raise ExitShellError(self._status)

    def _pipeline(self, pipeline: tree.Pipeline, streams: Streams) -> int:
        stdin = streams.stdin
        status = 0
        for position, command in enumerate(pipeline.commands):
            is_last = position == len(pipeline.commands) - 1
            stdout = streams.stdout if is_last else bytearray()
            # Each part of a longer pipeline has a shell of its own, as in most real ones.
            shell = self if len(pipeline.commands) == 1 else self.child()
            status = shell._command(command, Streams(stdin, stdout, streams.stderr))
            stdin = bytes(stdout)
        return int(status == 0) if pipeline.negated else status

    def _command(self, command: tree.Command, streams: Streams) -> int:
        if isinstance(command, tree.Simple):
            return self._simple(command, streams)
        if isinstance(command, tree.Group):
            return self._redirected(command.redirects, streams, lambda inner: self._group(command, inner))
        if isinstance(command, tree.If):
            return self._if(command, streams)
        status = 0
        for value in [text for word in command.words for text in self._expand(word)]:
            self.variables[command.name] = value
            status = self._sequence(command.body, streams)
        return status

    def _group(self, group: tree.Group, streams: Streams) -> int:
        if not group.subshell:
            return self._sequence(group.body, streams)
        shell = self.child()
        shell.stop_on_error = self.stop_on_error
        self._excused = False
        try:
            return shell._sequence(group.body, streams)
        except ExitShellError as end:
            return end.status

    def _if(self, command: tree.If, streams: Streams) -> int:
        for condition, branch in command.branches:
            watched, self.stop_on_error = self.stop_on_error, False
            status = self._sequence(condition, streams)
            self.stop_on_error = watched
            if status == 0:
                return self._sequence(branch, streams)
        return self._sequence(command.otherwise, streams) if command.otherwise else 0

    def _simple(self, command: tree.Simple, streams: Streams) -> int:
        self._substituted_status = 0
        self._excused = False
        words = [text for word in command.words for text in self._expand(word)]
        values = {name: self._text(word) for name, word in command.assignments}
        if not words:
            self.variables |= values
            return self._redirected(command.redirects, streams, lambda inner: self._substituted_status)
        before = dict(self.variables)
        self.variables |= values
        try:
            return self._redirected(command.redirects, streams, lambda inner: self._call(words, inner))
        finally:
            for name in values:
                self.variables.pop(name, None)
                if name in before:
                    self.variables[name] = before[name]

    def _call(self, words: list[str], streams: Streams) -> int:
        reply = self.host.answer(" ".join(words), streams.stdin)
        if reply is not None:
            return _deliver(reply, streams)
        name = posixpath.basename(words[0])
        if name not in self._commands:
            streams.complain(f"sh: {words[0]}: not found")
            return NOT_FOUND
        try:
            return self._commands[name](self, words[1:], streams)
        except OSError as error:
            return streams.complain(f"{name}: {error.filename}: {error.strerror}")
        except (IndexError, ValueError):
            streams.complain(f"{name}: the fake one does not understand {' '.join(words[1:])!r}")
            return USAGE

    def _redirected(
        self, redirects: tuple[tree.Redirect, ...], streams: Streams, run: Callable[[Streams], int]
    ) -> int:
        streams = replace(streams)
        kept: list[tuple[str, bytearray]] = []
        try:
            for redirect in redirects:
                self._redirect(redirect, streams, kept)
        except OSError as error:
            return streams.complain(f"sh: {error.filename}: {error.strerror}")
        try:
            return run(streams)
        finally:
            for path, data in kept:
                self._write(path, bytes(data))

    def _redirect(self, redirect: tree.Redirect, streams: Streams, kept: list[tuple[str, bytearray]]) -> None:
        target = self._text(redirect.target)
        if redirect.operator == "<":
            streams.stdin = b"" if target == "/dev/null" else self.host.files.read(self.path(target))
            return
        if redirect.operator.endswith("&"):
            stream = {"1": streams.stdout, "2": streams.stderr}.get(target, bytearray())
        else:
            stream = bytearray()
            if not target.startswith("/dev/"):
                # Created or emptied at once, as the command may look at it.
                self.host.files.write(self.path(target), b"", append=redirect.operator == ">>")
            kept.append((target, stream))
        if redirect.descriptor == 1:
            streams.stdout = stream
        elif redirect.descriptor == 2:
            streams.stderr = stream

    def _write(self, path: str, data: bytes) -> None:
        if path in ("/dev/ttyS0", "/dev/console"):
            self.host.write_console(data.decode(errors="replace"))
        elif not path.startswith("/dev/"):
            self.host.files.write(self.path(path), data, append=True)

    # --- words -------------------------------------------------------------------------------------

    def _text(self, word: tree.Word) -> str:
        """A word's value where it is neither split nor a pattern."""
        return "".join(self._value(part) for part in word)

    def _expand(self, word: tree.Word) -> list[str]:
        """The words that a word becomes."""
        fields: list[tuple[str, str]] = []  # what it says, and the same as a pattern
        for part in word:
            value = self._value(part)
            if part.quoted:
                pieces = [(value, _escaped(value))]
            elif isinstance(part, tree.Text):
                pieces = [(value, value)]
            else:
                pieces = [(piece, piece) for piece in value.split()]
            splits = not part.quoted and value[:1].isspace()
            if pieces and fields and not splits:
                said, pattern = fields.pop()
                pieces[0] = (said + pieces[0][0], pattern + pieces[0][1])
            fields += pieces
        return [text for said, pattern in fields for text in self._matching(said, pattern)]

    def _matching(self, said: str, pattern: str) -> list[str]:
        if not any(char in pattern.replace("[*]", "").replace("[?]", "") for char in "*?"):
            return [said]
        found = self.host.files.glob(self.path(pattern))
        if not pattern.startswith("/"):
            found = [posixpath.relpath(path, self.folder) for path in found]
        return found or [said]

    def _value(self, part: tree.Text | tree.Variable | tree.Substitution) -> str:
        if isinstance(part, tree.Text):
            return part.text
        if isinstance(part, tree.Substitution):
            return self._substituted(part)
        value = str(self._status) if part.name == "?" else self.variables.get(part.name, "")
        if part.operator == ":-":
            return value or part.argument
        return _trimmed(value, part.operator, part.argument)

    def _substituted(self, part: tree.Substitution) -> str:
        shell = self.child()
        streams = Streams()
        try:
            self._substituted_status = shell._sequence(part.body, streams)
        except ExitShellError as end:
            self._substituted_status = end.status
        return os.fsdecode(bytes(streams.stdout)).rstrip("\n")


def _trimmed(value: str, operator: str, pattern: str) -> str:
    """``${value#pattern}`` and its kin: without the shortest (or longest) matching head or tail."""
    if not operator:
        return value
    cuts = range(len(value) + 1)
    if operator.startswith("#"):
        ends = cuts if operator == "#" else reversed(cuts)
        return next((value[n:] for n in ends if fnmatch.fnmatchcase(value[:n], pattern)), value)
    starts = reversed(cuts) if operator == "%" else cuts
    return next((value[:n] for n in starts if fnmatch.fnmatchcase(value[n:], pattern)), value)


def _escaped(text: str) -> str:
    return text.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _deliver(reply: Completed, streams: Streams) -> int:
    streams.stdout += reply.stdout
    streams.stderr += reply.stderr
    return reply.exit_status
