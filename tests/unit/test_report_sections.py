"""The words about a node in a failing test's report."""

from pytest_vmfest.journal import Remembered, Said
from pytest_vmfest.look import Look
from pytest_vmfest.telling import printable, section


def look(**known):
    """A look at a node called db-0."""
    told = {
        "node": "db-0",
        "machine": "db-0-1a2b",
        "role": "db",
        "image": "tiny",
        "driver": "fake",
        "timings": {},
        "commands": (),
    }
    return Look(**{**told, **known})


def test_all_there_is_to_tell():
    """The section names node and machine, and holds state, way in, commands and the test's console."""
    commands = [
        Remembered("make", 0.0, "exit status 2", 1.5, Said.of("building\n"), Said.of("no rule\n")),
        Remembered("sleep 9", 0.0),
    ]
    title, text = section(
        look(state="running", ssh_command="ssh x", console="old\nnew\n", began=4, commands=commands)
    )
    assert title == "vmfest: node db-0 (machine db-0-1a2b, image tiny)"
    assert text.splitlines() == [
        "state: running; ssh x",
        "commands:",
        "  $ make",
        "    exit status 2 after 1.50 s",
        "    stdout:",
        "      building",
        "    stderr:",
        "      no rule",
        "  $ sleep 9",
        "    still running",
        "console since the test began:",
        "  | new",
    ]


def test_nothing_to_tell():
    """Without commands and console the section says so; trouble stands in it."""
    _, text = section(look(trouble=["its state cannot be told: no answer within 5 s"]))
    assert text.splitlines() == [
        "state: unknown",
        "its state cannot be told: no answer within 5 s",
        "commands: none",
        "console since the test began: nothing",
    ]


def test_the_section_is_bounded():
    """However much was run and said, the report stays readable; the ends are shown."""
    much = "".join(f"line {number} {'x' * 500}\n" for number in range(5000))
    commands = [Remembered(f"echo {n}\n" * 1000, 0.0, "exit status 0", 0.1, Said.of(much)) for n in range(50)]
    _, text = section(look(console=much, commands=commands))
    assert len(text) < 100_000
    assert "commands (the last 10):" in text
    assert "line 4999" in text.splitlines()[-1]


def test_text_for_terminals_and_xml():
    """Escape sequences, controls and broken characters of a console do no harm in a report."""
    assert printable("\x1b[2J\x1b[0;32m  OK  \x1b[0m\r\r\n\x1b]0;title\x07\x1bcnext\x00\udcff é") == (
        "  OK  \nnext\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} é"
    )
