"""Templates in the store: which are whole, who has them to himself, which are removed."""

import os
import threading
import time

import pytest

from pytest_vmfest.drivers import DRIVERS, FREEZING, base, driver_class
from pytest_vmfest.errors import NotSupportedError, WaitTimeoutError
from pytest_vmfest.specs import HARDWARE, ImageModel, MachineSpec, PrivateNic
from pytest_vmfest.warm import templates
from pytest_vmfest.warm.templates import Templates, template_at, templates_in, tidy


class Driver:
    """As much of a driver as templates need."""

    name = "qemu"
    outlives_us = True

    def __init__(self, home):
        self.settings = type("Settings", (), {"home": home})
        self.key = "key"

    def freezing_key(self, spec):
        if self.key is None:
            raise NotSupportedError("it cannot")
        return self.key


@pytest.fixture
def driver(tmp_path):
    """A driver with a store."""
    return Driver(tmp_path)


@pytest.fixture
def spec(tmp_path):
    """A machine with a private NIC."""
    nic = PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1")
    return MachineSpec("m", ImageModel("tiny", tmp_path / "disk", "qcow2"), HARDWARE["micro"], nics=(nic,))


@pytest.fixture
def make(tmp_path, driver, spec):
    """Makes templates with a file of so many bytes, used so many seconds ago."""

    def make(name, size=4096, used_s=0.0, whole=True):
        template = template_at(tmp_path, name)
        template.folder.mkdir(parents=True)
        (template.folder / "memory").write_bytes(os.urandom(size))
        if whole:
            template.complete(spec, driver, 1.5)
            moment = time.time() - used_s
            os.utime(template.folder / "template.json", (moment, moment))
        return template

    return make


def test_the_name_tells_image_and_what_it_depends_on(driver, spec, tmp_path):
    """Another key, driver or image makes another template."""
    told = []
    found = Templates(driver, told.append)
    first = found.of(spec)
    assert first.name.startswith("tiny-")
    assert first.folder.parent == tmp_path / "templates"
    assert found.of(spec).name == first.name
    driver.key = "other"
    assert found.of(spec).name != first.name
    assert told == []


def test_why_machines_have_none_is_told_once(driver, spec):
    """However many machines are asked for."""
    told = []
    driver.key = None
    found = Templates(driver, told.append)
    assert [found.of(spec), found.of(spec)] == [None, None]
    assert [step.text for step in told] == ["machines boot: it cannot"]


def test_what_is_known_of_it(make):
    """What was noted when it was whole."""
    facts = make("tiny-1").facts()
    assert (facts.image, facts.driver, facts.memory_mib, facts.took_s) == ("tiny", "qemu", 512, 1.5)
    assert facts.macs == ("52:54:00:00:00:01",)


@pytest.mark.parametrize("damage", ["no facts", "cut", "missing", "no JSON", "older"])
def test_what_is_not_whole_is_not_trusted(make, damage):
    """Neither one that was never finished, nor one that has lost something."""
    template = make("tiny-1", whole=damage != "no facts")
    facts = template.folder / "template.json"
    if damage == "cut":
        (template.folder / "memory").write_bytes(b"")
    elif damage == "missing":
        (template.folder / "memory").unlink()
    elif damage == "no JSON":
        facts.write_text("{")
    elif damage == "older":
        facts.write_text('{"image": "tiny"}')
    assert template.facts() is None


def test_one_makes_it_while_others_wait(tmp_path):
    """Who waits is asked again and again whether to go on waiting, and then has it."""
    one, other = (template_at(tmp_path, "tiny-1") for _ in range(2))
    asked, order = threading.Event(), []

    def wait():
        with other.turn(60, asked.set):
            order.append("other")

    with one.turn(60, lambda: None):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert asked.wait(10)
        order.append("one")
    waiting.join(10)
    assert order == ["one", "other"]


def test_patience_has_an_end(tmp_path):
    """Then the error names the template."""
    one, other = (template_at(tmp_path, "tiny-1") for _ in range(2))
    with one.turn(60, lambda: None):
        with pytest.raises(WaitTimeoutError, match="tiny-1"):
            with other.turn(0, lambda: None):
                pass


def test_old_ones_and_broken_ones_are_removed(make, tmp_path):
    """What nobody has used for long goes, also what is not whole; what is in use stays."""
    old_s = templates.MAX_AGE_S + 60
    make("fresh")
    make("old", used_s=old_s)
    make("old-but-used", used_s=old_s)
    make("broken", whole=False)
    assert sorted(tidy(tmp_path, {"old-but-used"})) == ["broken", "old"]
    assert [one.name for one in templates_in(tmp_path)] == ["fresh", "old-but-used"]


def test_those_used_last_are_kept_when_there_are_too_many(make, tmp_path, monkeypatch):
    """As many as fit."""
    monkeypatch.setattr(templates, "MAX_BYTES", 250_000)
    for age_s, name in enumerate(("newest", "second", "third", "oldest")):
        make(name, size=100_000, used_s=60.0 * age_s)
    assert sorted(tidy(tmp_path, ())) == ["oldest", "third"]


def test_one_that_is_being_made_is_left_alone(make, tmp_path):
    """It is not whole yet, but somebody is at it."""
    template = make("tiny-1", whole=False)
    with template.turn(60, lambda: None):
        assert tidy(tmp_path, ()) == []
    assert tidy(tmp_path, ()) == ["tiny-1"]


def test_the_drivers_that_freeze():
    """Machines that use a template are looked for with all of these."""
    able = {name for name in DRIVERS if driver_class(name).freezing_key is not base.Driver.freezing_key}
    assert set(FREEZING) == able
