"""What a VirtualBox web service says of itself in its WSDL: its enumerations and its operations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Enumerations:
    """The enumerations of the running version, as vboxapi's ``constants`` has them.

    >>> enumerations = Enumerations({"SessionState": {"Null": 0, "Unlocked": 1}})
    >>> enumerations.SessionState_Unlocked
    1
    >>> enumerations.label("SessionState", 1)
    'Unlocked'
    """

    def __init__(self, values: Mapping[str, Mapping[str, int]]) -> None:
        """Take every enumeration's labels and numbers, in the order of their declaration."""
        self._values = values

    def __contains__(self, name: object) -> bool:
        """Whether there is an enumeration of that name."""
        return name in self._values

    def __getattr__(self, name: str) -> int:
        """``MachineState_Running`` and the like."""
        enumeration, _, label = name.partition("_")
        try:
            return self._values[enumeration][label]
        except KeyError:
            raise AttributeError(f"this VirtualBox has no constant {name}") from None

    def all_values(self, enumeration: str) -> dict[str, int]:
        """The numbers of an enumeration by label; empty if there is no such one."""
        return dict(self._values.get(enumeration, {}))

    def number(self, enumeration: str, label: str) -> int:
        """The number of a label."""
        return self._values[enumeration][label]

    def label(self, enumeration: str, number: int) -> str:
        """The first label that has the number; `ValueError` if none has."""
        for label, value in self._values[enumeration].items():
            if value == int(number):
                return label
        raise ValueError(f"{enumeration} has no value {number}")


def enumerations_of(wsdl: str) -> Enumerations:
    """Read the enumerations' numbers, which a WSDL of VirtualBox has in comments.

    The types themselves have the labels only. Labels that merely mark a range, such as ``FirstOnline``,
    come last in them, so that `Enumerations.label` never answers with one.
    """
    found = {}
    for name, body in re.findall(r"<!-- enum: (\w+) -(.*?)-->", wsdl, re.DOTALL):
        pairs = re.findall(r"^\s*(\w+): (-?\w+) -", body, re.MULTILINE)
        found[name] = {label: int(number, 0) for label, number in pairs}
    return Enumerations(found)


@dataclass(frozen=True)
class Part:
    """One parameter or result of an operation."""

    name: str
    type: str
    """A simple type of XML Schema, an enumeration or a struct; object references are strings."""
    is_list: bool
    members: tuple[Part, ...] = ()
    """Those of a struct."""


@dataclass(frozen=True)
class Operation:
    """One operation: a method, or the reading or writing of an attribute."""

    name: str
    parameters: tuple[Part, ...]
    """Without the object itself."""
    results: tuple[Part, ...]
    """In the order of XPCOM's bindings: the returned value, then the out-parameters."""

    @classmethod
    def of(cls, declared: Any) -> Operation:
        """What zeep found out about an operation."""
        given = [part for part in _parts(declared.input.body.type.elements) if part.name != "_this"]
        results = sorted(
            _parts(declared.output.body.type.elements), key=lambda part: part.name != "returnval"
        )
        return cls(declared.name, tuple(given), tuple(results))

    def __str__(self) -> str:
        """``IMachine_setExtraData(key, value)``."""
        return f"{self.name}({', '.join(part.name for part in self.parameters)})"


def _parts(elements: Iterable[tuple[str, Any]]) -> list[Part]:
    return [
        Part(
            name,
            element.type.name,
            bool(element.accepts_multiple),
            tuple(_parts(getattr(element.type, "elements", ()))),
        )
        for name, element in elements
    ]
