"""What shell text means: the nodes that `syntax.parse` makes of it and `shell.Shell` runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """Literal text; ``quoted`` text is neither split nor a pattern."""

    text: str
    quoted: bool


@dataclass(frozen=True)
class Variable:
    """``$name``, or ``${name<operator>argument}``."""

    name: str
    operator: str
    argument: str
    quoted: bool


@dataclass(frozen=True)
class Substitution:
    """``$(body)``."""

    body: Sequence
    quoted: bool


Word = tuple[Text | Variable | Substitution, ...]


@dataclass(frozen=True)
class Redirect:
    """``<descriptor><operator>target``."""

    descriptor: int
    operator: str
    target: Word


@dataclass(frozen=True)
class Simple:
    """Assignments, words and redirections."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True)
class Group:
    """``{ … }``, or ``( … )`` when ``subshell``."""

    body: Sequence
    subshell: bool
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True)
class If:
    """Conditions with their branches, and what is done otherwise."""

    branches: tuple[tuple[Sequence, Sequence], ...]
    otherwise: Sequence | None


@dataclass(frozen=True)
class For:
    """``for name in words; do body; done``."""

    name: str
    words: tuple[Word, ...]
    body: Sequence


Command = Simple | Group | If | For


@dataclass(frozen=True)
class Pipeline:
    """Commands joined by ``|``; ``negated`` by ``!``."""

    commands: tuple[Command, ...]
    negated: bool


@dataclass(frozen=True)
class Chain:
    """Pipelines joined by ``&&`` and ``||``; the first one's operator is ``&&``."""

    links: tuple[tuple[str, Pipeline], ...]


@dataclass(frozen=True)
class Sequence:
    """Chains, one after the other."""

    chains: tuple[Chain, ...]
