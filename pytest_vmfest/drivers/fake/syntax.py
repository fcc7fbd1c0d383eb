"""Reading shell text for the fake guest: the part of POSIX's shell grammar that tests mostly use.

Commands, pipes, ``&&`` and ``||``, groups and subshells, ``if`` and ``for``, quotes, variables, ``$(…)`` and
redirections. Not: here-documents, ``&``, ``case``, ``while``, functions, arithmetic.
"""

from __future__ import annotations

import re

from pytest_vmfest.drivers.fake.tree import (
    Chain,
    Command,
    For,
    Group,
    If,
    Pipeline,
    Redirect,
    Sequence,
    Simple,
    Substitution,
    Text,
    Variable,
    Word,
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BLANKS = re.compile(r"([ \t]|\\\n)*")
_SPACE = re.compile(r"([ \t\n]|\\\n|#[^\n]*)*")
_REDIRECT = re.compile(r"(\d?)(>>|>&|<&|>|<)")
_BRACED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*|\?)(##|#|%%|%|:-)?([^}]*)\}")
_PLAIN = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*|[?$#])")
_RESERVED = frozenset({"then", "elif", "else", "fi", "do", "done", "in", "}"})


class ShellSyntaxError(Exception):
    """Text that is wrong, or beyond the fake shell."""


def parse(text: str) -> Sequence:
    """The program that ``text`` is; `ShellSyntaxError` if it is none that the fake shell knows."""
    parser = _Parser(text)
    program = parser.sequence()
    parser.expect_end()
    return program


class _Parser:
    """Recursive descent over the text itself, as what a character means depends on where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    # --- grammar -----------------------------------------------------------------------------------

    def sequence(self) -> Sequence:
        chains: list[Chain] = []
        while True:
            self._skip(_SPACE)
            if self._at == len(self._text) or self._peek() == ")" or self._word_ahead() in _RESERVED:
                return Sequence(tuple(chains))
            chains.append(self._chain())
            self._skip(_BLANKS)
            if self._peek() == "&":
                raise ShellSyntaxError("'&' is beyond the fake shell")
            if self._peek() not in (";", "\n", ""):
                return Sequence(tuple(chains))
            self._take(";")

    def expect_end(self) -> None:
        if self._at < len(self._text):
            raise ShellSyntaxError(f"unexpected {self._text[self._at :][:20]!r}")

    def _chain(self) -> Chain:
        links = [("&&", self._pipeline())]
        while operator := self._take("&&") or self._take("||"):
            self._skip(_SPACE)
            links.append((operator, self._pipeline()))
        return Chain(tuple(links))

    def _pipeline(self) -> Pipeline:
        self._skip(_BLANKS)
        negated = self._word_ahead() == "!"
        if negated:
            self._keyword("!")
        commands = [self._command()]
        self._skip(_BLANKS)
        while not self._text.startswith("||", self._at) and self._take("|"):
            self._skip(_SPACE)
            commands.append(self._command())
            self._skip(_BLANKS)
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Command:
        self._skip(_BLANKS)
        ahead = self._word_ahead()
        if ahead == "{":
            return self._group("{", "}")
        if self._peek() == "(":
            return self._group("(", ")")
        if ahead == "if":
            return self._if()
        if ahead == "for":
            return self._for()
        if ahead in ("case", "while", "until"):
            raise ShellSyntaxError(f"{ahead!r} is beyond the fake shell")
        return self._simple()

    def _group(self, opening: str, closing: str) -> Group:
        self._take(opening)
        body = self.sequence()
        if not self._take(closing):
            raise ShellSyntaxError(f"there is no {closing!r}")
        return Group(body, opening == "(", self._redirects())

    def _if(self) -> If:
        branches = []
        self._keyword("if")
        while True:
            condition = self.sequence()
            self._keyword("then")
            branches.append((condition, self.sequence()))
            if self._word_ahead() != "elif":
                break
            self._keyword("elif")
        otherwise = None
        if self._word_ahead() == "else":
            self._keyword("else")
            otherwise = self.sequence()
        self._keyword("fi")
        return If(tuple(branches), otherwise)

    def _for(self) -> For:
        self._keyword("for")
        self._skip(_BLANKS)
        name = self._match(_NAME)
        self._skip(_SPACE)
        self._keyword("in")
        words = self._words()
        self._skip(_BLANKS)
        self._take(";")
        self._keyword("do")
        body = self.sequence()
        self._keyword("done")
        return For(name, words, body)

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            self._skip(_BLANKS)
            if redirect := self._redirect():
                redirects.append(redirect)
            elif not words and (found := re.compile(_NAME.pattern + "=").match(self._text, self._at)):
                self._at = found.end()
                assignments.append((found[0][:-1], self._word() or ()))
            elif (word := self._word()) is not None:
                words.append(word)
            elif assignments or words or redirects:
                return Simple(tuple(assignments), tuple(words), tuple(redirects))
            else:
                raise ShellSyntaxError(f"a command is missing before {self._text[self._at :][:20]!r}")

    def _words(self) -> tuple[Word, ...]:
        words: list[Word] = []
        while True:
            self._skip(_BLANKS)
            word = self._word()
            if word is None:
                return tuple(words)
            words.append(word)

    def _redirects(self) -> tuple[Redirect, ...]:
        redirects = []
        self._skip(_BLANKS)
        while redirect := self._redirect():
            redirects.append(redirect)
            self._skip(_BLANKS)
        return tuple(redirects)

    def _redirect(self) -> Redirect | None:
        if self._text.startswith("<<", self._at):
            raise ShellSyntaxError("here-documents are beyond the fake shell")
        found = _REDIRECT.match(self._text, self._at)
        if not found:
            return None
        self._at = found.end()
        self._skip(_BLANKS)
        target = self._word()
        if target is None:
            raise ShellSyntaxError(f"nothing stands after {found[0]!r}")
        default = "0" if found[2].startswith("<") else "1"
        return Redirect(int(found[1] or default), found[2], target)

    # --- words -------------------------------------------------------------------------------------

    def _word(self) -> Word | None:
        parts: list[Text | Variable | Substitution] = []
        started = False
        while (char := self._peek()) and char not in " \t\n;&|()<>":
            if char == "#" and not started:
                self._skip(re.compile(r"[^\n]*"))
                break
            if self._text.startswith("\\\n", self._at):
                self._at += 2
                continue
            started = True
            if char == "'":
                end = self._text.find("'", self._at + 1)
                if end < 0:
                    raise ShellSyntaxError("there is no closing '")
                parts.append(Text(self._text[self._at + 1 : end], True))
                self._at = end + 1
            elif char == '"':
                parts += self._double_quoted()
            elif char == "\\":
                parts.append(Text(self._text[self._at + 1 : self._at + 2], True))
                self._at += 2
            else:
                parts.append(self._expansion(quoted=False) or self._literal())
        return tuple(parts) if started else None

    def _double_quoted(self) -> list[Text | Variable | Substitution]:
        self._at += 1
        parts: list[Text | Variable | Substitution] = [Text("", True)]
        while (char := self._peek()) != '"':
            if not char:
                raise ShellSyntaxError('there is no closing "')
            if char == "\\" and self._text[self._at + 1 : self._at + 2] in ("$", "`", '"', "\\", "\n"):
                escaped = self._text[self._at + 1]
                parts.append(Text("" if escaped == "\n" else escaped, True))
                self._at += 2
            elif expansion := self._expansion(quoted=True):
                parts.append(expansion)
            else:
                parts.append(Text(char, True))
                self._at += 1
        self._at += 1
        return parts

    def _expansion(self, *, quoted: bool) -> Variable | Substitution | None:
        if self._peek() == "`":
            raise ShellSyntaxError("'`' is beyond the fake shell; use $(…)")
        if self._text.startswith("$((", self._at):
            raise ShellSyntaxError("arithmetic is beyond the fake shell")
        if self._text.startswith("$(", self._at):
            self._at += 2
            body = self.sequence()
            if not self._take(")"):
                raise ShellSyntaxError("there is no ')' for '$('")
            return Substitution(body, quoted)
        if found := _BRACED.match(self._text, self._at):
            self._at = found.end()
            return Variable(found[1], found[2] or "", found[3], quoted)
        if found := _PLAIN.match(self._text, self._at):
            self._at = found.end()
            return Variable(found[1], "", "", quoted)
        return None

    def _literal(self) -> Text:
        return Text(self._match(re.compile(r"[^ \t\n;&|()<>'\"\\$`]+|\$")), False)

    # --- characters --------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _word_ahead(self) -> str:
        found = re.compile(r"[^ \t\n;&|()<>]*").match(self._text, self._at)
        return found[0] if found else ""

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _take(self, text: str) -> str:
        self._skip(_BLANKS)
        if not self._text.startswith(text, self._at):
            return ""
        self._at += len(text)
        return text

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if not found:
            raise ShellSyntaxError(f"unexpected {self._text[self._at :][:20]!r}")
        self._at = found.end()
        return found[0]

    def _keyword(self, word: str) -> None:
        self._skip(_SPACE)
        if self._word_ahead() != word:
            raise ShellSyntaxError(f"{word!r} is missing before {self._text[self._at :][:20]!r}")
        self._at += len(word)
