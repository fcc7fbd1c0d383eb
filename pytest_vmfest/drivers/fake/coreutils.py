"""The fake guest's commands for text and files. Each takes its shell, its arguments and its streams."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS

if TYPE_CHECKING:
    from pytest_vmfest.drivers.fake.shell import Shell, Streams

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\0": "\0", "\\\\": "\\"}


# --- text --------------------------------------------------------------------------------------------


def echo(shell: Shell, words: list[str], streams: Streams) -> int:
    """``echo [-n] WORD…``."""
    end = "\n"
    if words[:1] == ["-n"]:
        words, end = words[1:], ""
    streams.say(" ".join(words) + end)
    return 0


def printf(shell: Shell, words: list[str], streams: Streams) -> int:
    """``printf PATTERN WORD…`` with ``%s`` and ``%d``."""
    pattern = re.sub(r"\\[ntr0\\]", lambda found: _ESCAPES[found[0]], words[0])
    values = words[1:]
    while True:
        rest = list(values)
        parts = re.split(r"(%[sd%])", pattern)
        for position in range(1, len(parts), 2):
            parts[position] = "%" if parts[position] == "%%" else rest.pop(0) if rest else ""
        streams.say("".join(parts))
        if not rest or len(rest) == len(values):
            return 0
        values = rest


def cat(shell: Shell, words: list[str], streams: Streams) -> int:
    """``cat [FILE…]``."""
    status = 0
    for path in words or ["-"]:
        try:
            streams.stdout += streams.stdin if path == "-" else shell.host.files.read(shell.path(path))
        except OSError as error:
            status = streams.complain(f"cat: {path}: {error.strerror}")
    return status


def _lines(shell: Shell, paths: list[str], streams: Streams) -> list[str]:
    """The lines of the files, or of standard input without any."""
    data = b"".join(shell.host.files.read(shell.path(path)) for path in paths) if paths else streams.stdin
    return data.decode(ENCODING, ENCODING_ERRORS).splitlines()


def sed(shell: Shell, words: list[str], streams: Streams) -> int:
    """``sed '/pattern/d' [FILE…]``."""
    found = re.fullmatch(r"/(.*)/d", words[0])
    if not found:
        return streams.complain("sed: the fake one knows '/pattern/d' only")
    kept = [line for line in _lines(shell, words[1:], streams) if not re.search(found[1], line)]
    streams.say("".join(f"{line}\n" for line in kept))
    return 0


def grep(shell: Shell, words: list[str], streams: Streams) -> int:
    """``grep [-Fcivqx] PATTERN [FILE…]``."""
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    pattern, *paths = [word for word in words if not word.startswith("-")]
    wanted = re.escape(pattern) if "F" in flags else pattern
    search = re.fullmatch if "x" in flags else re.search
    found = [
        line
        for line in _lines(shell, paths, streams)
        if bool(search(wanted, line, re.IGNORECASE if "i" in flags else 0)) != ("v" in flags)
    ]
    if "c" in flags:
        streams.say(f"{len(found)}\n")
    elif "q" not in flags:
        streams.say("".join(f"{line}\n" for line in found))
    return int(not found)


# --- files -------------------------------------------------------------------------------------------


def split_flags(words: list[str]) -> tuple[str, list[str]]:
    """The letters of all options, and what is no option."""
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    return flags, [word for word in words if not word.startswith("-")]


def ls(shell: Shell, words: list[str], streams: Streams) -> int:
    """``ls [PATH…]``, one name a line."""
    _, paths = split_flags(words)
    for path in paths or ["."]:
        where = shell.path(path)
        names = shell.host.files.names(where) if shell.host.files.is_folder(where) else [path]
        if names == [path]:
            shell.host.files.read(where)
        streams.say("".join(f"{name}\n" for name in names))
    return 0


def mkdir(shell: Shell, words: list[str], streams: Streams) -> int:
    """``mkdir [-p] PATH…``."""
    flags, paths = split_flags(words)
    for path in paths:
        shell.host.files.make_folder(shell.path(path), parents="p" in flags)
    return 0


def touch(shell: Shell, words: list[str], streams: Streams) -> int:
    """``touch PATH…``."""
    for path in words:
        if not shell.host.files.is_folder(shell.path(path)):
            shell.host.files.write(shell.path(path), b"", append=True)
    return 0


def rm(shell: Shell, words: list[str], streams: Streams) -> int:
    """``rm [-rf] PATH…``."""
    flags, paths = split_flags(words)
    for path in paths:
        try:
            shell.host.files.remove(shell.path(path), recursive="r" in flags)
        except FileNotFoundError:
            if "f" not in flags:
                raise
    return 0


def chmod(shell: Shell, words: list[str], streams: Streams) -> int:
    """``chmod MODE PATH…``; octal, or ``+x``."""
    symbolic = {"+x": 0o755, "a+x": 0o755, "u+x": 0o744}
    for path in words[1:]:
        shell.host.files.chmod(shell.path(path), symbolic.get(words[0]) or int(words[0], 8))
    return 0


def sha256sum(shell: Shell, words: list[str], streams: Streams) -> int:
    """``sha256sum FILE…``."""
    for path in words:
        digest = hashlib.sha256(shell.host.files.read(shell.path(path))).hexdigest()
        streams.say(f"{digest}  {path}\n")
    return 0
