"""``vmfest gc`` on ledgers of dead owners; QEMU's driver needs no machine to run for that."""

import json
import time

import pytest
from click.testing import CliRunner

from pytest_vmfest import Server
from pytest_vmfest.cli import main
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.ledger import Kind, Ledger, Owner
from pytest_vmfest.processes import Process


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """The ledger of an owner that is no more, in the store that the command line uses too."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path))
    dead = Process(pid=1, start_ticks=0, boot="another")
    return Ledger.begin(tmp_path, Owner("qemu", DriverSettings(tmp_path).as_json(), {"run": "r1"}, dead))


def half_made(ledger: Ledger, name: str) -> None:
    """A machine of the ledger's, as a kill in the middle of its creation leaves it."""
    ledger.add(Kind.MACHINE, name)
    (ledger.path.parents[1] / "machines" / name).mkdir(parents=True)


def vmfest_gc(*arguments):
    """The result of `vmfest gc …`."""
    return CliRunner().invoke(main, ["gc", *arguments])


def test_nothing_to_remove(tmp_path, monkeypatch):
    """That is told, and is no error; no store is made for it."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "none"))
    result = vmfest_gc()
    assert result.exit_code == 0
    assert "nothing to remove" in result.stderr
    assert not (tmp_path / "none").exists()


def test_what_is_removed_and_what_is_kept(ledger):
    """Each machine has its line."""
    half_made(ledger, "left")
    half_made(ledger, "wanted")
    ledger.keep("wanted", time.time() + 1000)
    lines = vmfest_gc().stdout.splitlines()
    assert lines[0] == "left: removed"
    assert lines[1].startswith("wanted: kept until 20")
    assert [machine.name for machine in Server("qemu").machines()] == ["wanted"]


def test_json(ledger):
    """The same for programs."""
    half_made(ledger, "left")
    half_made(ledger, "wanted")
    until = time.time() + 1000
    ledger.keep("wanted", until)
    assert json.loads(vmfest_gc("--json").stdout) == {
        "removed": ["left"],
        "kept": {"wanted": until},
        "errors": [],
    }


def test_what_cannot_be_removed(ledger):
    """It is told, and the exit status says so."""
    ledger.path.write_text(ledger.path.read_text().replace('"qemu"', '"no-such-driver"', 1))
    half_made(ledger, "left")
    result = vmfest_gc()
    assert result.exit_code == 1
    assert "no-such-driver" in result.stderr
