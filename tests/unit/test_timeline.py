"""The timeline's page: what is drawn, read back by a parser of HTML."""

import re
from html.parser import HTMLParser

import pytest

from pytest_vmfest.phases import Phase
from pytest_vmfest.timeline import _LEGEND, timeline, write_timeline

VOID = {"meta", "input"}
NASTY = """t/test_a.py::test_<b>&"quoted"'ü—日本'[</script><i class="x">::$when${y}]"""


class Page(HTMLParser):
    """A page's elements as (tag, attributes), its text, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        """Remember it."""
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """It ends what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Text, styles and scripts left out."""
        if not {"style", "script"} & set(self.open):
            self.text += data

    def of(self, *classes):
        """The attributes of all elements that have these classes."""
        return [had for _, had in self.elements if set(classes) <= set((had.get("class") or "").split())]


def phases_of(test, number=0, worker="gw0", **how):
    """The phases of a test that has a machine for itself."""
    began, machine = 1000.0 + 10 * number, f"vm-{number}"
    return [
        Phase(test, "clone", began, 0.5, worker, "vm", machine),
        Phase(test, "boot", began + 0.5, 2.5, worker, "vm", machine),
        Phase(test, "setup", began, 3.0, worker),
        Phase(test, "test", began + 3, 4.0, worker, **how),
        Phase(test, "teardown", began + 7, 0.25, worker, "vm", machine),
        Phase(test, "teardown", began + 7, 0.5, worker),
    ]


def test_bars_stand_where_their_phases_were():
    """Each phase is a bar, from its start for its seconds, and says what it is; below is the machine."""
    page = Page(timeline(phases_of("t.py::test_one"), ended=1010.0))
    (boot,) = page.of("bar", "boot")
    assert boot["style"] == "--s:0.500;--d:2.500"
    assert boot["title"].splitlines() == [
        "boot: 2.500 s",
        "t.py::test_one",
        "node vm (machine vm-0)",
        "from 0.500 s to 3.000 s, worker gw0",
    ]
    life = next(had for had in page.of("life") if "title" in had)
    assert life["style"] == "--s:0.000;--d:7.250"
    assert len(page.of("bar", "test")) == 2, "in the test's row and in the worker's lane"


def test_a_machine_that_stays_is_there_to_the_end():
    """One that is kept has no teardown."""
    page = Page(timeline([Phase("t", "clone", 1000.0, 1.0, "main", "vm", "vm-1")], ended=1060.0))
    assert [had["style"] for had in page.of("life") if "title" in had] == ["--s:0.000;--d:60.000"]


def test_the_legend_knows_every_phase():
    """Each phase that occurs stands there with a colour of its own, its seconds and how often it was."""
    page = timeline(phases_of("t::a") + phases_of("t::b", 1), ended=1020.0)
    assert re.search(r'class="boot"></i>boot <small>5\.0 s, 2 times', page)
    assert "init_script</small>" not in page
    assert all(f"\n.{phase} {{ background:" in page for phase in _LEGEND)


def test_failed_tests_are_marked():
    """In words, not by the colour alone; of a test that was run again the last time counts."""
    again = phases_of("t::again", 1, failed=True) + phases_of("t::again", 2)
    page = Page(timeline(phases_of("t::bad", failed=True) + again, ended=1030.0))
    (row,) = page.of("row", "failed")
    assert row
    assert "✗ bad" in page.text
    assert "1 failed" in page.text
    assert len([had for had in page.of("bar", "failed") if "t::bad" in had.get("title", "")]) == 2
    assert all("(failed)" in had["title"] for had in page.of("bar", "test", "failed"))


def test_a_lane_for_each_worker():
    """In the order of their numbers; without xdist there is one."""
    phases = [one for n, worker in enumerate(("gw10", "gw2")) for one in phases_of(f"t::{n}", n, worker)]
    page = Page(timeline(phases, ended=1030.0))
    assert len(page.of("worker")) == 2
    assert page.text.index("gw2") < page.text.index("gw10")


def test_names_are_text_whatever_they_hold():
    """Nothing of a test's id becomes markup, nor a placeholder."""
    page = Page(timeline(phases_of(NASTY), ended=1010.0))
    assert NASTY in page.text
    assert page.of("bar", "boot")[0]["title"].splitlines()[1] == NASTY
    assert page.of("x") == []


def test_the_file_needs_nothing_else():
    """Nothing is fetched, and there is one script, which is in it."""
    text = timeline(phases_of("t::a"), ended=1010.0)
    page = Page(text)
    assert not any({"src", "href"} & set(had) for _, had in page.elements)
    assert [had for tag, had in page.elements if tag == "script"] == [{}]
    assert "url(" not in text
    assert "http" not in text
    assert "@import" not in text


def test_two_hundred_tests():
    """All have a row, and the file stays small enough to be opened anywhere."""
    phases = [one for n in range(200) for one in phases_of(f"t.py::test_it[{n}]", n, f"gw{n % 4}")]
    text = timeline(phases, ended=3000.0)
    page = Page(text)
    assert len(page.of("row")) == 200
    assert len(page.of("bar", "boot")) == 200
    assert "200 tests with 200 machines" in page.text
    assert len(text) < 1_000_000


@pytest.mark.parametrize("seconds", [0.05, 3.2, 540, 86400])
def test_ticks(seconds):
    """Round numbers of seconds, as many as can be read."""
    page = Page(timeline([Phase("t", "image", 1000.0, 0.01, "main")], ended=1000.0 + seconds))
    assert 5 <= len(page.of("tick")) <= 13
    told = re.findall(r"([\d.e+-]+) s", page.text[page.text.index("worker, test") :])
    step = float(told[1])
    assert f"{step:e}"[0] in "125"
    assert [float(one) for one in told] == pytest.approx([n * step for n in range(len(told))])


def test_without_machines_the_page_says_so():
    """There is nothing to draw then."""
    page = Page(timeline([], ended=1000.0))
    assert "No machines were used in this run" in page.text
    assert page.of("bar") == []


def test_the_file_replaces_an_old_one_and_gets_its_folder(tmp_path):
    """Nothing else is left beside it, also if it cannot be written."""
    path = tmp_path / "reports" / "vm" / "line.html"
    write_timeline(path, [], ended=1000.0)
    write_timeline(path, phases_of("t::new"), ended=1010.0)
    assert "t::new" in path.read_text(encoding="utf-8")
    with pytest.raises(OSError, match="directory"):
        write_timeline(path.parent, [], ended=1000.0)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "reports", path.parent, path]
