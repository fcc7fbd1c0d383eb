"""The fake guest's commands: their table, and those of the shell, for users and for the system."""

from __future__ import annotations

import posixpath
import time
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.fake import coreutils
from pytest_vmfest.drivers.fake.shell import Builtin, ExitShellError, Shell, Streams
from pytest_vmfest.remote import ENCODING, ENCODING_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.drivers.fake.guest import Guest

_SUDO_WITH_VALUE = ("-u", "-p", "-g")


def table(guest: Guest) -> dict[str, Builtin]:
    """All commands of a guest by name."""
    return {
        "true": lambda shell, words, streams: 0,
        ":": lambda shell, words, streams: 0,
        "false": lambda shell, words, streams: 1,
        "sync": lambda shell, words, streams: 0,
        "ip": lambda shell, words, streams: 0,
        "exit": _exit,
        "set": _set,
        "export": _export,
        "cd": _cd,
        "pwd": _pwd,
        "echo": coreutils.echo,
        "printf": coreutils.printf,
        "test": _test,
        "[": lambda shell, words, streams: _test(shell, words[:-1], streams),
        "env": _env,
        "id": _id,
        "whoami": lambda shell, words, streams: _id(shell, ["-un"], streams),
        "sh": _sh,
        "su": _su,
        "sudo": lambda shell, words, streams: _sudo(guest, shell, words, streams),
        "cat": coreutils.cat,
        "sed": coreutils.sed,
        "grep": coreutils.grep,
        "ls": coreutils.ls,
        "mkdir": coreutils.mkdir,
        "touch": coreutils.touch,
        "rm": coreutils.rm,
        "chmod": coreutils.chmod,
        "sha256sum": coreutils.sha256sum,
        "date": _date,
        "uname": _uname,
        "hostname": lambda shell, words, streams: _hostname(guest, words, streams),
        "ping": _ping,
        "sleep": lambda shell, words, streams: guest.sleep(float(words[0])),
        "reboot": lambda shell, words, streams: guest.reboot(),
        "poweroff": lambda shell, words, streams: guest.power_off(),
        "halt": lambda shell, words, streams: guest.power_off(),
    }


# --- the shell's own ---------------------------------------------------------------------------------


def _exit(shell: Shell, words: list[str], streams: Streams) -> int:
    raise ExitShellError(int(words[0]) & 0xFF if words else 0)


def _set(shell: Shell, words: list[str], streams: Streams) -> int:
    shell.stop_on_error = "-e" in words or (shell.stop_on_error and "+e" not in words)
    return 0


def _export(shell: Shell, words: list[str], streams: Streams) -> int:
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            shell.variables[name] = value
    return 0


def _cd(shell: Shell, words: list[str], streams: Streams) -> int:
    where = shell.path(words[0] if words else shell.home)
    shell.host.files.names(where)
    shell.folder = posixpath.normpath(where)
    return 0


def _pwd(shell: Shell, words: list[str], streams: Streams) -> int:
    streams.say(f"{shell.folder}\n")
    return 0


def _test(shell: Shell, words: list[str], streams: Streams) -> int:
    if words[:1] == ["!"]:
        return int(_test(shell, words[1:], streams) == 0)
    files = shell.host.files
    if len(words) == 3:
        left, operator, right = words
        if operator in ("=", "!="):
            return int((left == right) != (operator == "="))
        compare: dict[str, Callable[[int, int], bool]] = {
            "-eq": int.__eq__, "-ne": int.__ne__, "-lt": int.__lt__,
            "-le": int.__le__, "-gt": int.__gt__, "-ge": int.__ge__,
        }  # fmt: skip
        if operator in compare:
            return int(not compare[operator](int(left), int(right)))
    if len(words) == 2:
        entry = files.entry(shell.path(words[1])) if words[1] else None
        checks = {
            "-n": bool(words[1]),
            "-z": not words[1],
            "-e": entry is not None,
            "-f": entry is not None and entry.kind == "file",
            "-d": entry is not None and entry.kind == "folder",
            "-s": entry is not None and bool(entry.data),
            "-x": entry is not None and bool(entry.mode & 0o111),
        }
        if words[0] in checks:
            return int(not checks[words[0]])
    if len(words) < 2:
        return int(not any(words))
    streams.complain(f"test: {' '.join(words)}: beyond the fake shell")
    return 2


# --- users -------------------------------------------------------------------------------------------


def _env(shell: Shell, words: list[str], streams: Streams) -> int:
    streams.say("".join(f"{name}={value}\n" for name, value in shell.variables.items()))
    return 0


def _id(shell: Shell, words: list[str], streams: Streams) -> int:
    number = 0 if shell.user == "root" else 1000
    answers = {"-un": shell.user, "-u": str(number)}
    streams.say(answers.get("".join(words), f"uid={number}({shell.user}) gid={number}({shell.user})") + "\n")
    return 0


def _sh(shell: Shell, words: list[str], streams: Streams) -> int:
    if words[:1] == ["-c"]:
        return shell.child().run(words[1], streams)
    script = shell.host.files.read(shell.path(words[0])) if words else streams.stdin
    return shell.child().run(script.decode(ENCODING, ENCODING_ERRORS), streams)


def _su(shell: Shell, words: list[str], streams: Streams) -> int:
    """``su [-s SHELL] USER -c TEXT``."""
    text = words[words.index("-c") + 1] if "-c" in words else ""
    plain = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before not in ("-c", "-s") and not word.startswith("-")
    ]
    return shell.child(user=plain[0] if plain else "root").run(text, streams)


def _sudo(guest: Guest, shell: Shell, words: list[str], streams: Streams) -> int:
    """``sudo [-n] [-H] [-k] [-S] [-p PROMPT] [-u USER] [--] COMMAND…``."""
    options: dict[str, str] = {}
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--":
            break
        options[option] = words.pop(0) if option in _SUDO_WITH_VALUE else ""
    if "-S" in options:
        given, _, streams.stdin = streams.stdin.partition(b"\n")
        wanted = guest.login.sudo_password
        if wanted is not None and given.decode(ENCODING, ENCODING_ERRORS) != wanted:
            return streams.complain("sudo: 1 incorrect password attempt")
    child = shell.child(user=options.get("-u", "root"))
    return child.run(" ".join(_quoted(word) for word in words), streams)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


# --- the system --------------------------------------------------------------------------------------


def _date(shell: Shell, words: list[str], streams: Streams) -> int:
    """``date [+FORMAT]``; setting the clock (``-s``) changes nothing, as it is this host's and right."""
    pattern = next((word[1:] for word in words if word.startswith("+")), "%a %b %e %H:%M:%S UTC %Y")
    streams.say(time.strftime(pattern.replace("%s", str(int(time.time()))), time.gmtime()) + "\n")
    return 0


def _uname(shell: Shell, words: list[str], streams: Streams) -> int:
    name = shell.host.files.read("/etc/hostname").decode().strip()
    facts = {"s": "Linux", "n": name, "r": "6.1.0-fake", "v": "#1 fake", "m": "x86_64"}
    flags, _ = coreutils.split_flags(words)
    chosen = list(facts) if "a" in flags else [flag for flag in facts if flag in (flags or "s")]
    streams.say(" ".join(facts[flag] for flag in chosen) + "\n")
    return 0


def _hostname(guest: Guest, words: list[str], streams: Streams) -> int:
    if words:
        guest.hostname = words[0]
    else:
        streams.say(f"{guest.hostname}\n")
    return 0


def _ping(shell: Shell, words: list[str], streams: Streams) -> int:
    """Succeeds for every name that the guest's /etc/hosts has; nothing is sent."""
    target = next(word for word in reversed(words) if not word.startswith("-"))
    known = shell.host.files.read("/etc/hosts").decode(ENCODING, ENCODING_ERRORS).split()
    if target in known or target in ("localhost", "127.0.0.1"):
        streams.say(f"PING {target}: 1 packets transmitted, 1 packets received, 0% packet loss\n")
        return 0
    return streams.complain(f"ping: bad address '{target}'")
