"""The fake guest's shell: a small part of sh.

It runs commands in sequence (newline, ``;``, ``&&``, ``||``), with redirections, quotes, ``$NAME``,
``${NAME}`` and ``$?``, whose values are not split. A script with anything else is not begun.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pytest_vmfest.drivers.fake.commands import COMMANDS, failed
from pytest_vmfest.drivers.fake.world import completed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.drivers.fake.machine import FakeMachine
    from pytest_vmfest.remote import Completed
    from pytest_vmfest.specs import Login

# What a fresh guest is told about itself (pytest_vmfest.guest) has a loop and substitutions. It is not run:
# its name and its lines of /etc/hosts are read from the text, and NICs need nothing here.
_INTRODUCTION = re.compile(r"set -e\n.* hostname (\S+)\necho \1 > /etc/hostname\n")
_HOSTS_LINE = re.compile(r"[\d.]+ \S+ # vmfest")
# What pytest_vmfest.shell.compose makes of the user's environment, folder and text.
_COMPOSED = re.compile(r"(.*?) && \{\n(.*)\n\}", re.DOTALL)

# shlex does not tell which characters were quoted: they hide from it where Unicode is for private use.
_HIDDEN = 0x100000
_EDGE = chr(_HIDDEN + 128)  # around what was quoted: it is a word even if empty, and no part of a name
_SHOWN = {_HIDDEN + code: code for code in range(128)} | {ord(_EDGE): None}
_QUOTED = re.compile(r"""\\\n|(?<![^\s;&|])#[^\n]*|'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)""", re.DOTALL)
_LITERAL = {1: r"[\0-\x7f]", 2: r'\\[$`"\\]|[^\w$`{}\x80-\U0010ffff]', 3: r"[\0-\x7f]"}
_BEYOND = re.compile(
    rf"[\"'`*]|<>|\$[({chr(_HIDDEN + ord('('))}]|\$\{{(?!\w+\}})"
    r"|(?<![^;&|\n])[ \t]*(?:[{}!]|if|for|while|until|case)(?!\S)"
)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\?)", re.ASCII)
_LINKS = (";", "&&", "||")
# Redirections of standard error (2>) go through shlex as <>, which is beyond this shell otherwise.
_REDIRECTIONS = ("<", ">", ">>", ">&", "<>", "<>>", "<>&")


class _File(BytesIO):
    """A stream into a file of the guest, which is created or emptied at once."""

    def __init__(self, machine: FakeMachine, path: str, *, append: bool) -> None:
        super().__init__()
        self._machine, self._path = machine, path
        machine.write(path, b"", append=append)

    def write(self, data: Any) -> int:
        self._machine.write(self._path, data, append=True)
        return len(data)


@dataclass
class Streams:
    """What a command reads from and writes to. Two that are the same object are one stream."""

    stdin: BytesIO
    stdout: BytesIO = field(default_factory=BytesIO)
    stderr: BytesIO = field(default_factory=BytesIO)


@dataclass
class Shell:
    """A shell of ``user``; ``wait`` sleeps, and raises when the time is up or the machine is gone."""

    machine: FakeMachine
    login: Login
    wait: Callable[[float], None]
    user: str
    folder: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    status: int = 0

    def __post_init__(self) -> None:
        """Start at home, unless a folder is given."""
        home = self.machine.home(self.user)
        self.folder = self.folder or home
        self.variables = {**self.variables, "HOME": home, "USER": self.user}

    def run(self, text: str, streams: Streams) -> int:
        """Run a script and return its exit status."""
        if found := _INTRODUCTION.match(text):
            self.machine.introduce(found[1], _HOSTS_LINE.findall(text))
            return 0
        if found := _COMPOSED.fullmatch(text):
            return self.run(found[1], streams) or self.run(found[2], streams)
        try:
            tokens = _tokens(text)
        except NotImplementedError as error:
            return _deliver(self._taught(text, streams) or _unknown(str(error)), streams)
        try:
            return self._sequence(tokens, streams)
        except SystemExit as end:
            return int(end.args[0])

    def reply(self, words: list[str], streams: Streams) -> Completed:
        """What one command does and says."""
        if taught := self._taught(" ".join(words), streams):
            return taught
        name = words[0]
        command = COMMANDS.get(posixpath.basename(name))
        if command is None:
            return _unknown(name)
        try:
            result = command(self, words[1:], streams)
        except OSError as error:
            return failed(1, f"{name}: {error.filename}: {error.strerror}")
        except (LookupError, ValueError):
            return failed(2, f"{shlex.join(words)}: more than the fake {name} understands")
        # Whatever a command runs in its turn is not run above: the errors of a user's answer are theirs.
        return completed(result() if callable(result) else result)

    def paths(self, words: list[str]) -> list[str]:
        """The words that are no options, as absolute paths."""
        return [
            posixpath.normpath(f"{self.folder}/{w}" if w[:1] != "/" else w) for w in words if w[:1] != "-"
        ]

    def _taught(self, text: str, streams: Streams) -> Completed | None:
        return self.machine.world.answer(self.machine.spec.name, text, streams.stdin)

    def _sequence(self, tokens: list[str], streams: Streams) -> int:
        link, command = ";", list[str]()
        for token in [*tokens, ";"]:
            if token not in _LINKS:
                command.append(token)
                continue
            if command and (link == ";" or (link == "&&") == (self.status == 0)):
                self.status = self._command(command, replace(streams))
            if command or token != ";":
                link, command = token, []
        return self.status

    def _command(self, tokens: list[str], streams: Streams) -> int:
        words, rest = list[str](), iter(tokens)
        try:
            for token in rest:
                if token in _REDIRECTIONS:
                    self._redirect(token, self._expanded(next(rest, "")), streams)
                elif (word := self._expanded(token)) or _EDGE in token:
                    words.append(word)
        except OSError as error:
            return _deliver(failed(1, f"sh: {error.filename}: {error.strerror}"), streams)
        return _deliver(self.reply(words, streams), streams) if words else 0

    def _redirect(self, operator: str, target: str, streams: Streams) -> None:
        path = posixpath.join(self.folder, target)
        if operator == "<":
            streams.stdin = BytesIO(self.machine.files.read(path))
            return
        if operator.endswith("&"):
            stream = streams.stderr if target == "2" else streams.stdout
        else:
            stream = _File(self.machine, path, append=operator.endswith(">>"))
        setattr(streams, "stderr" if operator.startswith("<") else "stdout", stream)

    def _expanded(self, word: str) -> str:
        def value(found: re.Match[str]) -> str:
            return self.variables.get(found[1] or found[2], "") if found.lastindex else str(self.status)

        return _VARIABLE.sub(value, word).translate(_SHOWN)


def _tokens(text: str) -> list[str]:
    text = _QUOTED.sub(_hide, text)
    if found := _BEYOND.search(text):
        raise NotImplementedError(found[0].translate(_SHOWN).strip())
    text = re.sub(r"(?<![^\s;&|])([12])>", lambda found: "<>" if found[1] == "2" else ">", text)
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    tokens = list(lexer)
    for token in tokens:
        if token[0] in "();<>|&" and token not in _LINKS + _REDIRECTIONS:
            raise NotImplementedError(token)
    return tokens


def _hide(found: re.Match[str]) -> str:
    if not found.lastindex:
        return ""  # a comment, or the end of a line that goes on
    literal, text = _LITERAL[found.lastindex], found[found.lastindex]
    return _EDGE + re.sub(literal, lambda part: chr(_HIDDEN + ord(part[0][-1])), text) + _EDGE


def _deliver(reply: Completed, streams: Streams) -> int:
    streams.stdout.write(reply.stdout)
    streams.stderr.write(reply.stderr)
    return reply.exit_status


def _unknown(what: str) -> Completed:
    return failed(127, f"sh: {what}: unknown to the fake guest; FakeDriver.respond teaches it an answer")
