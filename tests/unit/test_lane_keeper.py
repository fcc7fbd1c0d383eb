"""How the VirtualBox lane keeps logs, and finds the emulator's marks in them."""

import errno
import os
import time

import pytest

from tests.lane.keeper import changed_since, keep, marks_since, tails_since
from tests.lane.marks import marks_in


@pytest.fixture
def machine_log(tmp_path):
    """Writes the log of a machine below ``root``."""

    def write(name, text):
        folder = tmp_path / "root" / "machines" / name / "Logs"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "VBox.log"
        log.write_text(text)
        return log

    return write


@pytest.fixture
def kept(tmp_path):
    """The folder of kept logs, in the root itself as in the guest."""
    folder = tmp_path / "root" / "kept"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("00:00:12.345678 !! VCPU0: Guru Meditation -4001", {"guru meditation"}),
        ("machine 'm' is in state GURU_MEDITATION", {"guru meditation"}),
        ("EM: VINF_EM_TRIPLE_FAULT", {"triple fault"}),
        ("rc=VERR_SVM_ILLEGAL_EFER_MSR", {"invalid state for SVM"}),
        ("WaitTimeoutError: 'm' did not get an address within 60 s", set()),
        ("00:01:53.3 TM: Giving up catch-up attempt at a 60 170 817 575 ns lag;", {"virtual clock lost"}),
        ("EMR3Init: fIemExecutesAll=false fGuruOnTripleFault=true", set()),
        ("Changing the VM state from 'RUNNING' to 'POWERING_OFF'", set()),
    ],
)
def test_marks(text, marks):
    """Marks are what only a processor does."""
    assert marks_in(text) == marks


def test_a_log_on_another_file_system(tmp_path, machine_log, kept, monkeypatch):
    """It cannot be linked: what it holds by then is kept, with the time of its last change."""

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    log = machine_log("m", "begins\n")
    keep(tmp_path / "root", kept)
    log.write_text("begins\nGuru Meditation\n")
    os.utime(log, (1000, 1000))
    keep(tmp_path / "root", kept)
    [copy] = kept.iterdir()
    assert copy.read_text() == "begins\nGuru Meditation\n"
    assert changed_since(kept, 999) == [copy]
    assert changed_since(kept, 1001) == []


def test_a_log_outlives_its_machine(tmp_path, machine_log, kept):
    """What is written after the log was found is kept too, and a second start of a machine is another log."""
    log = machine_log("m", "begins\n")
    assert [name.partition("-")[0] for name in keep(tmp_path / "root", kept)] == ["m"]
    with log.open("a") as stream:
        stream.write("Guru Meditation\n")
    log.rename(log.with_name("VBox.log.1"))
    again = machine_log("m", "second\n")
    assert len(keep(tmp_path / "root", kept)) == 2
    assert len(keep(tmp_path / "root", kept)) == 2
    again.unlink()
    assert sorted(path.read_text() for path in kept.glob("*.log")) == [
        "begins\nGuru Meditation\n",
        "second\n",
    ]


def test_only_logs_of_the_test_count(tmp_path, machine_log, kept):
    """A machine that broke before the test began does not excuse it."""
    machine_log("old", "Guru Meditation")
    keep(tmp_path / "root", kept)
    (old,) = kept.glob("*.log")
    began = time.time() - 60
    os.utime(old, (began - 1, began - 1))
    machine_log("new", "x" * 50_000 + "the end\n" + "00:00:54.329378 /PROF/CPU0/EM/Halts  9 times\n" * 999)
    keep(tmp_path / "root", kept)
    assert marks_since(kept, began) == set()
    assert marks_since(kept, began - 2) == {"guru meditation"}
    assert [path.name.partition("-")[0] for path in changed_since(kept, began)] == ["new"]
    (tail,) = tails_since(kept, began).values()
    assert tail.endswith("the end\n")
    assert len(tail) < 20_000
