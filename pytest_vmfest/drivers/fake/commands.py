"""The fake guest's commands. Each returns its exit status, what it says, or both; None is status 0.

One that runs others returns a function that does so.
"""

from __future__ import annotations

import posixpath
import re
import stat
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS, Completed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.drivers.fake.shell import Shell, Streams


def failed(status: int, text: str) -> Completed:
    """The end of a command that only complains."""
    return Completed(status, b"", f"{text}\n".encode(ENCODING, ENCODING_ERRORS))


def _exit(sh: Shell, words: list[str], io: Streams) -> int:
    raise SystemExit(int(words[0]) & 0xFF if words else sh.status)


def _cd(sh: Shell, words: list[str], io: Streams) -> None:
    (folder,) = sh.paths(words or [sh.variables["HOME"]])
    sh.machine.files.names(folder)
    sh.folder = folder


def _export(sh: Shell, words: list[str], io: Streams) -> None:
    sh.variables |= dict(word.split("=", 1) for word in words)


def _printf(sh: Shell, words: list[str], io: Streams) -> str:
    values = iter(words[1:])
    pattern = words[0].replace("\\n", "\n").replace("\\t", "\t")
    return re.sub("%[sd%]", lambda found: "%" if found[0] == "%%" else next(values, ""), pattern)


def _cat(sh: Shell, words: list[str], io: Streams) -> Completed:
    data = [sh.machine.files.read(path) for path in sh.paths(words)] or [io.stdin.read()]
    return Completed(0, b"".join(data), b"")


def _test(sh: Shell, words: list[str], io: Streams) -> int:
    if len(words) == 3:
        return int({"=": words[0] != words[2], "!=": words[0] == words[2]}[words[1]])
    option, path = words
    entry = sh.machine.files.entry(posixpath.join(sh.folder, path)) if path else None
    folder = entry is not None and stat.S_ISDIR(entry.mode)
    checks = {"-e": entry, "-f": entry and not folder, "-d": folder, "-s": entry and entry.data}
    return int(not checks[option])


def _ls(sh: Shell, words: list[str], io: Streams) -> str:
    files, found = sh.machine.files, list[str]()
    for path in sh.paths(words) or [sh.folder]:
        found += files.names(path) if stat.S_ISDIR(files.existing(path).mode) else [path]
    return "".join(f"{name}\n" for name in found)


def _rm(sh: Shell, words: list[str], io: Streams) -> None:
    options = "".join(word for word in words if word.startswith("-"))
    for path in sh.paths(words):
        sh.machine.files.remove(path, recursive="r" in options, missing_ok="f" in options)


def _mkdir(sh: Shell, words: list[str], io: Streams) -> None:
    for path in sh.paths(words):
        sh.machine.files.make_folder(path, parents="-p" in words)


def _touch(sh: Shell, words: list[str], io: Streams) -> None:
    for path in sh.paths(words):
        sh.machine.write(path, b"", append=True)


def _uname(sh: Shell, words: list[str], io: Streams) -> str:
    facts = {"s": "Linux", "n": sh.machine.memory.hostname, "r": "6.1.0-fake", "m": "x86_64"}
    flags = "".join(words) or "-s"
    return " ".join(fact for flag, fact in facts.items() if flag in flags or "a" in flags) + "\n"


def _id(sh: Shell, words: list[str], io: Streams) -> str:
    number = "0" if sh.user == "root" else "1000"
    whole = f"uid={number}({sh.user}) gid={number}({sh.user})"
    return {"-un": sh.user, "-u": number, "": whole}["".join(words)] + "\n"


def _sudo(sh: Shell, words: list[str], io: Streams) -> object:
    """``sudo [-n] [-H] [-k] [-S] [-p PROMPT] [-u USER] [--] COMMAND…``."""
    user, password = "root", sh.login.sudo_password
    while words[0].startswith("-") and (option := words.pop(0)) != "--":
        value = words.pop(0) if option in ("-u", "-p") else ""
        user = value if option == "-u" else user
        if option == "-S" and io.stdin.readline() != f"{password}\n".encode() and password is not None:
            return failed(1, "sudo: 1 incorrect password attempt")
    return partial(replace(sh, user=user).reply, words, io)


def _su(sh: Shell, words: list[str], io: Streams) -> object:
    """``su [-s SHELL] USER -c TEXT``."""
    *_, user, text = (word for word in words if word != "-c")
    return partial(replace(sh, user=user).run, text, io)


def _sh(sh: Shell, words: list[str], io: Streams) -> object:
    """``sh -c TEXT``."""
    return partial(replace(sh).run, words[words.index("-c") + 1], io)


def _sleep(sh: Shell, words: list[str], io: Streams) -> None:
    sh.wait(float(words[0]))


def _reboot(sh: Shell, words: list[str], io: Streams) -> None:
    sh.machine.boot()
    sh.wait(0)  # which finds the connection broken


def _power_off(sh: Shell, words: list[str], io: Streams) -> None:
    sh.machine.end(MachineState.POWERED_OFF)
    sh.wait(0)


COMMANDS: dict[str, Callable[[Shell, list[str], Streams], object]] = {
    "true": lambda sh, words, io: 0,
    "false": lambda sh, words, io: 1,
    "exit": _exit,
    "cd": _cd,
    "pwd": lambda sh, words, io: f"{sh.folder}\n",
    "export": _export,
    "echo": lambda sh, words, io: " ".join(words[1:]) if words[:1] == ["-n"] else " ".join(words) + "\n",
    "printf": _printf,
    "test": _test,
    "[": lambda sh, words, io: _test(sh, words[:-1], io),
    "cat": _cat,
    "ls": _ls,
    "mkdir": _mkdir,
    "rm": _rm,
    "touch": _touch,
    "hostname": lambda sh, words, io: f"{sh.machine.memory.hostname}\n",
    "uname": _uname,
    "id": _id,
    "whoami": lambda sh, words, io: f"{sh.user}\n",
    "sh": _sh,
    "su": _su,
    "sudo": _sudo,
    "date": lambda sh, words, io: 0,
    "sync": lambda sh, words, io: 0,
    "sleep": _sleep,
    "reboot": _reboot,
    "poweroff": _power_off,
}
