"""The folders of what is kept of failing tests."""

import json

import pytest

from pytest_vmfest.artifacts import Artifacts, begin_run, end_run, folder_name
from pytest_vmfest.errors import StartError
from pytest_vmfest.journal import Remembered, Said
from pytest_vmfest.look import Look

ABOUT = {"test": "tests/test_a.py::test_it[x]", "when": "call"}


def look(node="vm", machine="vm-1", **known):
    """A look at a node."""
    said = {"role": "node", "image": "tiny", "driver": "fake", "timings": {"boot": 1.23456}, "commands": ()}
    return Look(node=node, machine=machine, **{**said, **known})


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("tests/test_a.py::TestB::test_it[tiny-1]", "tests-test_a.py-TestB-test_it-tiny-1"),
        ("../test_a.py::test_it", "test_a.py-test_it"),
        ("[ä/ö]", "test"),
        ("a" * 5000 + "end", "a" * 60 + "-..-" + "a" * 52 + "end"),
    ],
)
def test_names_are_readable_and_bounded(test, name):
    """The name tells the test, whatever stands in its id."""
    assert folder_name(test) == name


def test_all_of_a_node_is_kept(tmp_path):
    """Console, commands and screen are whole; info.json says whose they are."""
    commands = [
        Remembered("make", 0.0, "exit status 2", 1.5, Said.of("building"), Said.of("no \udcff rule\n"))
    ]
    seen = look(console="all\x1b[0m of it\n", began=3, commands=commands, state="running")
    seen.screenshot = lambda path: path.write_bytes(b"PNG")
    (folder,) = Artifacts(tmp_path).keep([seen], ABOUT)
    assert folder == tmp_path / "tests-test_a.py-test_it-x" / "vm"
    assert (folder / "console.log").read_text() == "all\x1b[0m of it\n"
    log = (folder / "commands.log").read_text()
    assert "$ make\nexit status 2 after 1.50 s\nstdout:\nbuilding\nstderr:\nno ? rule\n" in log
    assert (folder / "screenshot.png").read_bytes() == b"PNG"
    info = json.loads((folder / "info.json").read_text())
    assert (info["test"], info["node"], info["state"]) == (ABOUT["test"], "vm", "running")
    assert info["timings_s"] == {"boot": 1.235}


def test_a_screen_that_cannot_be_had_is_told(tmp_path):
    """The rest is kept without it."""
    seen = look()

    def fail(path):
        raise OSError("no screen")

    seen.screenshot = fail
    (folder,) = Artifacts(tmp_path).keep([seen], ABOUT)
    assert json.loads((folder / "info.json").read_text())["trouble"] == [
        "its screen cannot be had: no screen"
    ]
    assert seen.trouble == ["its screen cannot be had: no screen"]
    assert not (folder / "screenshot.png").exists()


def test_folders_are_never_shared(tmp_path):
    """Phases of one test share; tests, reruns, other processes and machines of one name do not."""
    ours, others = Artifacts(tmp_path), Artifacts(tmp_path)
    first = ours.keep([look()], ABOUT)
    assert ours.keep([look(), look(machine="vm-2")], {**ABOUT, "when": "teardown"})[0] == first[0]
    ours.begin()
    again = ours.keep([look()], ABOUT)
    elsewhere = others.keep([look()], ABOUT)
    assert [str(path.relative_to(tmp_path)) for path in (*first, *again, *elsewhere)] == [
        "tests-test_a.py-test_it-x/vm",
        "tests-test_a.py-test_it-x-2/vm",
        "tests-test_a.py-test_it-x-3/vm",
    ]
    assert sorted(path.name for path in first[0].parent.iterdir()) == ["vm", "vm-2"]


def test_a_failed_start_leaves_its_console(tmp_path):
    """The whole console is kept, with the stage and the error."""
    error = StartError("no!", stage="kernel", elapsed_s=3, node="db-0", machine="db-0-1", console="booting")
    folder = Artifacts(tmp_path).keep_failed_start(error, ABOUT)
    assert (folder / "console.log").read_text() == "booting"
    info = json.loads((folder / "info.json").read_text())
    assert (info["node"], info["stage"], info["error"]) == ("db-0", "kernel", "no!")


def test_last_leads_to_the_newest_run(tmp_path):
    """Runs have folders of their own, also in one second; one that kept nothing leaves nothing."""
    first = begin_run(tmp_path / "kept")
    (first / "x").touch()
    end_run(first)
    assert (tmp_path / "kept" / "last").resolve() == first
    second = begin_run(tmp_path / "kept")
    assert second != first
    assert (tmp_path / "kept" / "last").resolve() == second
    end_run(second)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [first.name]


def test_the_end_of_a_run_leaves_the_next_ones_last_alone(tmp_path):
    """A run that ends while another one goes on does not take its link."""
    first = begin_run(tmp_path)
    second = begin_run(tmp_path)
    end_run(first)
    assert (tmp_path / "last").resolve() == second


def test_what_is_in_the_way_is_not_replaced(tmp_path):
    """A folder called last is somebody's; nothing is left of the attempt."""
    (tmp_path / "last").mkdir()
    with pytest.raises(OSError, match="last"):
        begin_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
