"""Reading the ``.meta`` files of vmfest, its Clojure ancestor: as data, nothing is evaluated.

Such a file holds a map of an image's properties, either bare (as published beside an image) or under the
image's name (as in ``~/.vmfest/models``)::

    {:os-type-id "Ubuntu_64", :os-family :ubuntu, :os-version "10.10", :os-64-bit true,
     :username "user", :password "superduper", :packager :apt, :description "Ubuntu 10.10"}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYS = {
    "os-type-id": "os_type",
    "os-family": "os_family",
    "os-version": "os_version",
    "os-64-bit": "os_64_bit",
    "packager": "packager",
    "description": "description",
    "username": "username",
    "password": "password",
    "sudo-password": "sudo_password",
    "no-sudo": "no_sudo",
}
# Where VirtualBox had the image on the machine that the file comes from.
_MEANINGLESS = frozenset({"uuid"})
_MAX_DEPTH = 20


class Keyword(str):
    """``:ubuntu`` as the text ``ubuntu``, told apart from the string ``"ubuntu"``."""

    __slots__ = ()


def read_meta_file(text: str, where: str, note: Callable[[str], None]) -> dict[str, Any]:
    """The metadata in a ``.meta`` file, by our names for its keys; ``note`` is told of unknown ones.

    Raises `ValueError` for what is no map of properties.
    """
    data = parse_edn(text)
    if isinstance(data, dict) and len(data) == 1 and isinstance(inner := next(iter(data.values())), dict):
        data = inner
    if not isinstance(data, dict) or not all(isinstance(key, Keyword) for key in data):
        raise ValueError("it is not a map of properties such as {:os-family :debian}")
    metadata: dict[str, Any] = {}
    for key, value in data.items():
        if key in _KEYS:
            metadata[_KEYS[key]] = str(value) if isinstance(value, Keyword) else value
        elif key not in _MEANINGLESS:
            note(f"{where}: :{key} is left out, it means nothing here")
    if metadata.get("os_64_bit") is None and isinstance(metadata.get("os_type"), str):
        # So did vmfest's users conclude where the key was missing.
        metadata["os_64_bit"] = metadata["os_type"].endswith("_64")
    return metadata


def parse_edn(text: str) -> Any:
    """Read one value of a subset of EDN: maps, vectors, keywords, strings, numbers, true, false and nil.

    Everything else, such as a list (which Clojure would call) or a tagged value, is a `ValueError` that
    tells the line. Format: https://github.com/edn-format/edn.
    """
    reader = _Reader(text)
    value = reader.value(0)
    reader.skip()
    if reader.at < len(text):
        reader.fail("nothing may follow the first value")
    return value


_SPACE = re.compile(r"(?:[\s,]|;[^\n]*)*")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
_WORD = re.compile(r"[^\s,;\"(){}\[\]#^'`~@\\]+")
_WORDS: dict[str, Any] = {"true": True, "false": False, "nil": None}
_INTEGER = re.compile(r"[+-]?\d+N?")
_FLOAT = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?M?")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, why: str) -> NoReturn:
        raise ValueError(f"line {self.text.count(chr(10), 0, self.at) + 1}: {why}")

    def skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def value(self, depth: int) -> Any:
        self.skip()
        if depth > _MAX_DEPTH:
            self.fail("nested too deeply")
        opening = self.text[self.at : self.at + 1]
        if opening == "{":
            return self.map(depth)
        if opening == "[":
            return self.items("]", depth)
        if opening == '"':
            return self.string()
        return self.word()

    def items(self, closing: str, depth: int) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while True:
            self.skip()
            if self.text.startswith(closing, self.at):
                self.at += 1
                return found
            found.append(self.value(depth + 1))

    def map(self, depth: int) -> dict[Any, Any]:
        start = self.at
        flat = self.items("}", depth)
        keys, values = flat[::2], flat[1::2]
        self.at, end = start, self.at
        if len(keys) != len(values):
            self.fail("a map with a key that has no value")
        if not all(isinstance(key, str) for key in keys):
            self.fail("a map with a key that is no keyword or string")
        if len(set(keys)) != len(keys):
            self.fail("a map with the same key twice")
        self.at = end
        return dict(zip(keys, values, strict=True))

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        if found is None:
            self.fail("a string without an end")
        text = _ESCAPE.sub(self.unescape, found[1])
        self.at = found.end()
        return text

    def unescape(self, escape: re.Match[str]) -> str:
        code = escape[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            self.fail(f"unknown escape \\{code} in a string")
        return _ESCAPES[code]

    def word(self) -> Any:
        found = _WORD.match(self.text, self.at)
        if found is None:
            rest = self.text[self.at : self.at + 10]
            self.fail(
                f"a value is expected, not {rest!r}" if rest else "the file ends in the middle of a value"
            )
        word = found[0]
        if word.startswith(":") and len(word) > 1:
            value: Any = Keyword(word[1:])
        elif word in _WORDS:
            value = _WORDS[word]
        elif _INTEGER.fullmatch(word):
            value = int(word.rstrip("N"))
        elif _FLOAT.fullmatch(word):
            value = float(word.rstrip("M"))
        else:
            self.fail(f"{word!r} is neither a keyword, string, number, true, false nor nil")
        self.at = found.end()
        return value
