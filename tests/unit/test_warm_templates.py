"""Templates in the store: which are whole, who has them to himself, which are removed."""

import os
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_vmfest.drivers import DRIVERS, STANDING_ON_TEMPLATES, driver_class
from pytest_vmfest.errors import NotSupportedError
from pytest_vmfest.specs import HARDWARE, ImageModel, MachineSpec, PrivateNic
from pytest_vmfest.warm import templates
from pytest_vmfest.warm.templates import Place, Template, Templates, templates_in, tidy


class Driver:
    """As much of a driver as templates need."""

    name = "qemu"
    freezes = True

    def __init__(self, home):
        self.settings = type("Settings", (), {"home": home})
        self.key = "key"

    def freezing_key(self, spec):
        if self.key is None:
            raise NotSupportedError("it cannot")
        return self.key

    def frozen_mib(self, spec):
        return spec.hardware.memory_mib + 1000


@pytest.fixture
def driver(tmp_path):
    """A driver with a store."""
    return Driver(tmp_path)


@pytest.fixture
def spec(tmp_path):
    """A machine with a private NIC."""
    nic = PrivateNic("net", "52:54:00:00:00:01", "10.0.0.1")
    (tmp_path / "disk").write_bytes(b"disk")
    return MachineSpec("m", ImageModel("tiny", tmp_path / "disk", "qcow2"), HARDWARE["micro"], nics=(nic,))


@pytest.fixture
def make(tmp_path, driver, spec):
    """Makes templates with a file of so many bytes, used so many seconds ago."""

    def make(name, size=4096, used_s=0.0, whole=True):
        template = Template(tmp_path / "templates" / name)
        template.folder.mkdir(parents=True)
        (template.folder / "memory").write_bytes(os.urandom(size))
        if whole:
            template.complete(spec, driver, 1.5)
            moment = time.time() - used_s
            os.utime(template.folder / "template.json", (moment, moment))
        return template

    return make


def test_the_place_tells_image_and_what_it_depends_on(driver, spec):
    """Another key, driver or image makes another place."""
    told = []
    found = Templates(driver, told.append)
    kinds = {found.place_of(spec).kind}
    assert next(iter(kinds)).startswith("tiny-")
    assert found.place_of(replace(spec, name="other")).kind in kinds
    kinds.add(found.place_of(replace(spec, image=replace(spec.image, name="other"))).kind)
    driver.key = "other"
    kinds.add(found.place_of(spec).kind)
    driver.name = "another"
    kinds.add(found.place_of(spec).kind)
    assert len(kinds) == 4
    assert told == []


def test_machines_that_have_none(driver, spec):
    """Permanent ones, and those of drivers that freeze nothing, just boot."""
    told = []
    found = Templates(driver, told.append)
    assert found.place_of(replace(spec, permanent=True)) is None
    driver.freezes = False
    assert found.place_of(spec) is None
    assert told == []


def test_why_machines_have_none_is_told_once(driver, spec):
    """However many machines are asked for."""
    told = []
    driver.key = None
    found = Templates(driver, told.append)
    assert [found.place_of(spec), found.place_of(spec)] == [None, None]
    assert [step.text for step in told] == ["machines boot: it cannot"]


@pytest.mark.parametrize("ever", [False, True])
def test_what_cannot_be_made_is_not_tried_again(driver, spec, ever):
    """Not by this process, and not by others either unless the trouble may pass; by command, it is."""
    told = []
    found, other = (Templates(driver, told.append) for _ in range(2))
    found.cannot_make(found.place_of(spec), "it never rests", ever=ever)
    assert found.place_of(spec) is None
    assert (other.place_of(spec) is None) is ever
    assert [step.text.partition(" (")[0] for step in told] == ["machines boot: it never rests"] * (1 + ever)
    templates.forget_failures(driver.settings.home)
    assert Templates(driver, told.append).place_of(spec) is not None


def test_a_failure_is_forgotten_in_time(driver, spec, monkeypatch):
    """The host may have been mended since."""
    found, other = (Templates(driver, lambda step: None) for _ in range(2))
    found.cannot_make(found.place_of(spec), "it never rests", ever=True)
    monkeypatch.setattr(templates, "FAILED_S", -1)
    assert other.place_of(spec) is not None
    tidy(driver.settings.home)
    assert not list((driver.settings.home / "templates").iterdir())


def test_one_that_cannot_be_resumed_is_made_anew_once(driver, spec, make):
    """When the new one cannot be resumed either, machines boot."""
    told = []
    found = Templates(driver, told.append)
    place = found.place_of(spec)
    for number in range(2):
        template = make(f"{place.kind}-{number}")
        assert place.template()[0].name == template.name
        template.give_up()
        found.cannot_resume(place, f"number {number} is damaged", ever=True)
        assert place.template() is None
    assert found.place_of(spec) is None
    assert [step.text for step in told] == [f"machines boot: number {n} is damaged" for n in range(2)]
    assert len(templates_in(driver.settings.home)) == 2, "machines may stand on them"


def test_the_newest_that_is_whole_counts(tmp_path, make):
    """Others of its kind may be left, or being made; those of other kinds are none of its business."""
    place = Place(tmp_path, "tiny-1")
    assert place.template() is None
    make("tiny-1-old", used_s=100)
    new = make("tiny-1-new", used_s=10)
    make("tiny-1-broken", whole=False)
    make("tiny-12")
    template, facts = place.template()
    assert (template.name, facts.image) == (new.name, "tiny")


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
    one, other = (Place(tmp_path, "tiny-1") for _ in range(2))
    asked, order = threading.Event(), []

    def wait():
        with other.turn(60, asked.set) as is_ours:
            order.append(is_ours)

    with one.turn(60, lambda: None) as is_ours:
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert asked.wait(10)
        order.append(("one", is_ours))
    waiting.join(10)
    assert order == [("one", True), True]


def test_patience_has_an_end(tmp_path):
    """Then it is not one's turn."""
    one, other = (Place(tmp_path, "tiny-1") for _ in range(2))
    with one.turn(60, lambda: None), other.turn(0, lambda: None) as is_ours:
        assert not is_ours
    with other.turn(0, lambda: None) as is_ours:
        assert is_ours


def test_one_that_is_held_is_not_removed(make):
    """Several may hold it; who comes too late is told."""
    template = make("tiny-1")
    with template.held() as first, template.held() as second:
        assert first
        assert second
        assert not template.remove()
    assert template.remove()
    with template.held() as is_ours:
        assert not is_ours


def test_one_that_is_just_removed_cannot_be_held(make, monkeypatch):
    """Nobody waits for that, and nobody takes the folder for what it was."""
    template = make("tiny-1")
    held = []

    def hold(home):
        with Template(template.folder).held() as is_ours:
            held.append(is_ours)
        return {}

    monkeypatch.setattr(templates, "users_in", hold)
    assert template.remove()
    assert held == [False]


def test_failures_count_until_one_succeeds(driver, spec):
    """What fails now and then is not given up."""
    found = Templates(driver, lambda step: None)
    place = found.place_of(spec)
    for number in range(4):
        found.cannot_resume(place, f"busy {number}", ever=False)
        found.resumed(place)
    assert found.place_of(spec) is not None


def test_one_that_machines_stand_on_is_not_removed(make, monkeypatch):
    """Nor is it given up for that."""
    template = make("tiny-1")
    monkeypatch.setattr(templates, "users_in", lambda home: {"tiny-1": ["db-0"]})
    assert not template.remove()
    assert template.facts() is not None


def test_old_ones_and_broken_ones_are_removed(make, tmp_path, monkeypatch):
    """What nobody has used for long goes, also what is not whole; what is in use stays."""
    monkeypatch.setattr(templates, "users_in", lambda home: {"old-but-used": ["db-0"]})
    old_s = templates.MAX_AGE_S + 60
    make("fresh")
    make("old", used_s=old_s)
    make("old-but-used", used_s=old_s)
    make("broken", whole=False)
    assert sorted(tidy(tmp_path)) == ["broken", "old"]
    assert [one.name for one in templates_in(tmp_path)] == ["fresh", "old-but-used"]


@pytest.mark.parametrize("what", ["gone", "replaced"])
def test_those_of_an_image_that_is_no_more_are_removed(make, spec, tmp_path, what):
    """Their disks stood on it."""
    make("tiny-1")
    assert tidy(tmp_path) == []
    spec.image.disk.unlink()
    if what == "replaced":
        spec.image.disk.write_bytes(b"another disk")
    assert tidy(tmp_path) == ["tiny-1"]


def test_those_used_last_are_kept_when_there_are_too_many(make, tmp_path, monkeypatch):
    """As many as fit."""
    monkeypatch.setattr(templates, "MAX_BYTES", 250_000)
    for age_s, name in enumerate(("newest", "second", "third", "oldest")):
        make(name, size=100_000, used_s=60.0 * age_s)
    assert sorted(tidy(tmp_path)) == ["oldest", "third"]


def test_one_that_is_being_made_is_left_alone(tmp_path):
    """It is not whole yet, but somebody is at it."""
    with Place(tmp_path, "tiny-1").begun() as template:
        assert tidy(tmp_path) == []
        assert template.folder.is_dir()
    assert templates_in(tmp_path) == [], "it was not finished"


def test_the_drivers_whose_machines_stand_on_templates():
    """They are among those that can freeze at all."""
    assert set(STANDING_ON_TEMPLATES) <= {name for name in DRIVERS if driver_class(name).freezes}


def test_no_room_is_told_once(driver, spec, monkeypatch):
    """Also when what is free has changed meanwhile; for larger machines it is told anew."""
    told, free_mib = [], iter(range(1000, 0, -1))
    monkeypatch.setattr(
        templates.shutil, "disk_usage", lambda home: SimpleNamespace(free=next(free_mib) << 20)
    )
    found = Templates(driver, told.append)
    for hardware in ("micro", "micro", "small", "micro"):
        assert not found.fits(replace(spec, hardware=HARDWARE[hardware]))
    assert [
        re.search(r"may take (\d+) MiB, and (\d+) MiB are free", step.text).groups() for step in told
    ] == [
        ("2024", "1000"),
        ("2536", "998"),
    ]
