"""``vmfest gc`` on ledgers of dead owners; QEMU's driver needs no machine to run for that."""

import json
import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pytest_vmfest import Server
from pytest_vmfest.cli import main
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.qemu import QemuDriver
from pytest_vmfest.drivers.qemu.record import Record, Store
from pytest_vmfest.ledger import Kind, Ledger, Owner
from pytest_vmfest.processes import Process
from pytest_vmfest.specs import HARDWARE, ImageModel, MachineSpec
from pytest_vmfest.warm.templates import MAX_AGE_S, Template, templates_in


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


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Makes templates that were used so many seconds ago; those that are not whole have no facts."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path))
    (tmp_path / "disk").write_bytes(b"disk")
    spec = MachineSpec("m", ImageModel("tiny", tmp_path / "disk", "qcow2"), HARDWARE["micro"])

    def make(name, used_s=0.0, whole=True, machine=None):
        made = Template(tmp_path / "templates" / name)
        made.folder.mkdir(parents=True)
        (made.folder / "memory").write_bytes(bytes(4096))
        if whole:
            made.complete(spec, QemuDriver(DriverSettings(tmp_path)), 1.5)
            moment = time.time() - used_s
            os.utime(made.folder / "template.json", (moment, moment))
        if machine:
            Store(tmp_path).add(Record(replace(spec, name=machine, thaw_from=made.folder), was_on=True))
        return made

    return make


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
        "templates": [],
        "errors": [],
    }


def test_what_cannot_be_removed(ledger):
    """It is told, and the exit status says so."""
    ledger.path.write_text(ledger.path.read_text().replace('"qemu"', '"no-such-driver"', 1))
    half_made(ledger, "left")
    result = vmfest_gc()
    assert result.exit_code == 1
    assert "no-such-driver" in result.stderr


@pytest.mark.parametrize("driver", ["auto", "virtualbox", "fake"])
def test_templates(template, tmp_path, monkeypatch, driver):
    """Those that are not whole or old go; others stay, and so does one that a machine stands on.

    Which driver is configured does not matter.
    """
    monkeypatch.setenv("VMFEST_DRIVER", driver)
    old_s = MAX_AGE_S + 60
    template("tiny-fresh")
    template("tiny-old", used_s=old_s)
    template("tiny-broken", whole=False)
    template("tiny-used", used_s=old_s, machine="db-0")
    result = vmfest_gc()
    assert result.exit_code == 0
    assert sorted(result.stdout.splitlines()) == [
        "template tiny-broken: removed",
        "template tiny-old: removed",
    ]
    assert [one.name for one in templates_in(tmp_path)] == ["tiny-fresh", "tiny-used"]
    assert "nothing to remove" in vmfest_gc().stderr


def test_templates_as_json(template):
    """Their names, beside those of machines; none is just as well told."""
    template("tiny-old", used_s=MAX_AGE_S + 60)
    told = {"removed": [], "kept": {}, "errors": []}
    assert json.loads(vmfest_gc("--json").stdout) == {**told, "templates": ["tiny-old"]}
    assert json.loads(vmfest_gc("--json").stdout) == {**told, "templates": []}


def test_a_template_that_is_being_made(template, tmp_path):
    """It is not whole yet, and left to who is at it."""
    making = template("tiny-1", whole=False)
    with making.held():
        assert vmfest_gc().stdout == ""
    assert [one.name for one in templates_in(tmp_path)] == ["tiny-1"]
