"""``vmfest template`` on templates made of small files; machines are told of by their records."""

import json
import os
import time

import pytest
from click.testing import CliRunner

from pytest_vmfest.cli import main
from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.qemu import QemuDriver
from pytest_vmfest.drivers.qemu.record import Record, Store
from pytest_vmfest.specs import HARDWARE, ImageModel, MachineSpec
from pytest_vmfest.warm.templates import FAILED_S, Place, Template, templates_in


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The store that the command line uses."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def spec(tmp_path):
    """A machine."""
    return MachineSpec("m", ImageModel("tiny", tmp_path / "disk", "qcow2"), HARDWARE["micro"])


@pytest.fixture
def make(home, spec):
    """Makes templates with a file of 8 KiB, used so many seconds ago."""

    def make(name, used_s=0.0, whole=True):
        template = Template(home / "templates" / name)
        template.folder.mkdir(parents=True)
        (template.folder / "memory").write_bytes(os.urandom(8192))
        if whole:
            template.complete(spec, QemuDriver(DriverSettings(home)), 1.56)
            moment = time.time() - used_s
            os.utime(template.folder / "template.json", (moment, moment))
        return template

    return make


@pytest.fixture
def use(home, spec):
    """Records a machine that has gone on from a template."""

    def use(template, name):
        image = ImageModel("tiny", home / "disk", "qcow2")
        machine = MachineSpec(name, image, spec.hardware, thaw_from=template.folder)
        Store(home).add(Record(machine, was_on=True))

    return use


def vmfest(*arguments):
    """The result of `vmfest template …`."""
    return CliRunner().invoke(main, ["template", *arguments])


def names(home):
    """The templates that there are."""
    return sorted(template.name for template in templates_in(home))


def test_list_of_none(home):
    """The user is told how one comes to be; for programs the list is empty."""
    result = vmfest("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "vmfest up tiny" in result.stderr
    assert json.loads(vmfest("list", "--json").stdout) == []


def test_list_tells_what_it_is_and_who_uses_it(make, use):
    """The last used comes first; machines stand with the one that they went on from."""
    make("tiny-old", used_s=7300)
    fresh = make("tiny-new")
    use(fresh, "db-0")
    use(fresh, "web-0")
    head, new, old = vmfest("list").stdout.splitlines()
    assert head.split() == ["NAME", "IMAGE", "DRIVER", "MEMORY", "CPUS", "ON", "DISK", "USED", "MACHINES"]
    assert new.split()[:6] == ["tiny-new", "tiny", "qemu", "512", "MiB", "1"]
    assert new.endswith("db-0, web-0")
    assert old.split()[0] == "tiny-old"
    assert old.split()[-3:] == ["2", "h", "-"]


def test_json(make, use):
    """The same for programs, in seconds and bytes."""
    template = make("tiny-1")
    use(template, "db-0")
    used = (template.folder / "template.json").stat().st_mtime
    assert json.loads(vmfest("list", "--json").stdout) == [
        {
            "name": "tiny-1",
            "image": "tiny",
            "driver": "qemu",
            "memory_mib": 512,
            "cpus": 1,
            "took_s": 1.6,
            "bytes_on_disk": template.bytes_on_disk,
            "last_used": round(used, 3),
            "machines": ["db-0"],
            "failure": None,
        }
    ]
    assert template.bytes_on_disk >= 8192


def fail(home, kind, reason, ago_s=0.0):
    """Notes that a kind of machine cannot be frozen; returns when."""
    Place(home, kind).note_failure(reason)
    moment = time.time() - ago_s
    os.utime(home / "templates" / f"{kind}.failed", (moment, moment))
    return round(moment, 3)


def test_what_could_not_be_frozen(make, home):
    """It is told below the templates, with the reason, as long as it is not tried again; then it is not."""
    fail(home, "web-1-111111111111", "web-1 cannot be frozen: no room\nat all", ago_s=7300)
    fail(home, "old-222222222222", "long ago", ago_s=FAILED_S + 1)
    result = vmfest("list")
    told = "web-1-111111111111: not frozen, found out 2 h ago: web-1 cannot be frozen: no room\n  at all\n"
    assert (result.exit_code, result.stdout) == (0, told)
    assert "vmfest template remove --all" in result.stderr
    assert "There are no templates" not in result.stderr
    make("tiny-1")
    head, row, *rest = vmfest("list").stdout.splitlines(keepends=True)
    assert (head.split()[0], row.split()[0], "".join(rest)) == ("NAME", "tiny-1", told)
    vmfest("remove", "--all")
    result = vmfest("list")
    assert result.stdout == ""
    assert "There are no templates" in result.stderr


def test_what_could_not_be_frozen_for_programs(make, home):
    """A row of the same form, with the reason; templates have none."""
    make("tiny-1")
    since = fail(home, "web-1-111111111111", "no room", ago_s=60)
    template, failed = json.loads(vmfest("list", "--json").stdout)
    assert template.keys() == failed.keys()
    assert template["failure"] is None
    said = {key: failed[key] for key in ("name", "image", "failure", "last_used")}
    assert said == {
        "name": "web-1-111111111111",
        "image": "web-1",
        "failure": "no room",
        "last_used": pytest.approx(since, abs=0.002),
    }


def test_one_that_is_not_whole(make):
    """It is listed, with what is known of it."""
    make("tiny-1", whole=False)
    assert vmfest("list").stdout.splitlines()[1].split()[:3] == ["tiny-1", "(not", "whole)"]
    (row,) = json.loads(vmfest("list", "--json").stdout)
    assert (row["image"], row["memory_mib"], row["cpus"], row["took_s"]) == (None, None, None, None)


def test_remove_by_name(make, home):
    """Those that are named go, whole or not, each once; the others stay."""
    make("tiny-1")
    make("tiny-2", whole=False)
    make("tiny-3")
    result = vmfest("remove", "tiny-1", "tiny-2", "tiny-1")
    assert (result.exit_code, result.stdout) == (0, "tiny-1: removed\ntiny-2: removed\n")
    assert names(home) == ["tiny-3"]


def test_remove_all(make, home):
    """All go; without any there is nothing to do."""
    make("tiny-1")
    make("tiny-2")
    result = vmfest("remove", "--all")
    assert (result.exit_code, sorted(result.stdout.splitlines())) == (
        0,
        ["tiny-1: removed", "tiny-2: removed"],
    )
    assert names(home) == []
    assert vmfest("remove", "--all").exit_code == 0


@pytest.mark.parametrize("driver", ["auto", "virtualbox", "fake"])
def test_one_in_use_is_refused(make, use, home, monkeypatch, driver):
    """Its machines are named, whichever driver is configured; the other templates are removed."""
    monkeypatch.setenv("VMFEST_DRIVER", driver)
    use(make("tiny-1"), "db-0")
    make("tiny-2")
    result = vmfest("remove", "--all")
    assert result.exit_code == 1
    assert "template tiny-1 is in use by db-0" in result.stderr
    assert result.stdout == "tiny-2: removed\n"
    assert names(home) == ["tiny-1"]


def test_one_that_is_being_made_is_refused(make, home):
    """Whoever is at it goes on."""
    template = make("tiny-1", whole=False)
    with template.held():
        result = vmfest("remove", "tiny-1")
    assert result.exit_code == 1
    assert "tiny-1 is just being made" in result.stderr
    assert names(home) == ["tiny-1"]


def test_an_unknown_name(make, home):
    """Those that there are are told, and nothing is removed."""
    make("tiny-1")
    result = vmfest("remove", "tiny-1", "tiny-9")
    assert result.exit_code == 1
    assert "there is no template tiny-9" in result.stderr
    assert "there are: tiny-1" in result.stderr
    assert names(home) == ["tiny-1"]


@pytest.mark.parametrize("arguments", [(), ("tiny-1", "--all")])
def test_names_or_all(make, home, arguments):
    """Neither, or both, is a mistake."""
    make("tiny-1")
    result = vmfest("remove", *arguments)
    assert result.exit_code == 2
    assert "give names, or --all" in result.stderr
    assert names(home) == ["tiny-1"]
