"""Starts by way of a template, on a driver without a hypervisor that can freeze its machines."""

import re
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytest_vmfest import FakeDriver, GroupStartError, Server, StartError
from pytest_vmfest.drivers.base import DriverSettings, MachineState
from pytest_vmfest.drivers.fake import FakeFault
from pytest_vmfest.drivers.refusals import wrong_state
from pytest_vmfest.errors import DriverError, NotSupportedError, ThawError
from pytest_vmfest.remote import Completed
from pytest_vmfest.request import VmRequest
from pytest_vmfest.startup import Startup
from pytest_vmfest.waiting import Deadline, wait_for
from pytest_vmfest.warm.templates import Templates, templates_in

PATIENCE_S = 20


class FreezingDriver(FakeDriver):
    """Freezes machines: their files and memory are kept by the folder that they were made for."""

    freezes = True

    def __init__(self, settings):
        super().__init__(settings)
        self.frozen = {}
        self.created = []
        self.on_freeze = lambda name: None
        self.on_thaw = lambda name: None
        self.cannot = ""

    def freezing_key(self, spec):
        if self.cannot:
            raise NotSupportedError(self.cannot)
        return f"{spec.image.name} {spec.hardware}"

    def _create(self, spec):
        super()._create(spec)
        self.created.append(spec)
        if spec.freeze_to:
            assert spec.freeze_to.is_dir()
            (spec.freeze_to / "memory").write_bytes(b"begun")

    def start(self, name, deadline):
        with self._machine(name) as machine:
            source = machine.spec.thaw_from
        if source is None:
            super().start(name, deadline)
            return
        self.on_thaw(name)
        with self._machine(name) as machine:
            files, machine.memory = self.frozen[source]
            machine.files = files.copy()
            machine.go_on()

    def freeze(self, name, deadline):
        self.on_freeze(name)
        with self._machine(name) as machine:
            (machine.spec.freeze_to / "memory").write_bytes(b"frozen")
            self.frozen[machine.spec.freeze_to] = machine.files.copy(), machine.memory
        self._destroy(name)

    def lateness_s(self, name):
        return 86400.25

    def machines(self):
        found = super().machines()
        source = {name: machine.spec.thaw_from for name, machine in self._world.machines.items()}
        return [replace(info, template=path.name if (path := source[info.name]) else "") for info in found]


@pytest.fixture
def told():
    """What the server has told."""
    return []


@pytest.fixture
def driver(tmp_path):
    """A driver that can freeze, whose guests know what they are told around that."""
    driver = FreezingDriver(DriverSettings(tmp_path))
    driver.respond(r"(?s).*/proc/stat.*", "")
    driver.respond(r"chmod 755 /var/lib/vmfest/mend", "")
    driver.respond(r"(?s)ip link > /dev/null\n.*", "")
    driver.respond(r"/var/lib/vmfest/mend .*", Completed(0, struct.pack("<qq", 10**9, 0), b""))
    driver.respond(r"(?s)/var/lib/vmfest/mend .*machine-id.*", "")
    return driver


@pytest.fixture
def server(tmp_path, driver, told, monkeypatch):
    """A server on it; whatever a test does, no machine may be left."""
    monkeypatch.setattr("pytest_vmfest.server.load_driver", lambda name, settings: driver)
    with Server("fake", home=tmp_path, boot_timeout_s=30, progress=told.append) as server:
        server.own({"test": "templates"})
        yield server
        driver.heal()
        assert [info.name for info in driver.machines()] == []
        ledger = driver.owner._ledger
        assert not (ledger and ledger.entries().machines), "all memory is given back"


def ways(driver):
    """What each machine was made for, in turn."""
    return ["make" if s.freeze_to else "resume" if s.thaw_from else "boot" for s in driver.created]


def texts(told):
    """What was told, without whom it is about."""
    return [step.text for step in told]


def test_the_first_makes_the_template_and_resumes_from_it(server, driver, told):
    """The next ones resume only; each begins as the first one was when it was frozen."""
    with server.launch("one", image="tiny") as node:
        assert list(node.timings) == ["template", "clone", "resume", "network"]
        assert not node.run("test -s /var/lib/vmfest/mend").exit_status
        node.write_text("/root/mine", "one")
    with server.launch("two", image="tiny") as node:
        assert list(node.timings) == ["clone", "resume", "network"]
        assert node.run("test -e /root/mine").exit_status == 1
        assert [info.template for info in driver.machines()] == [templates_in(server.home)[0].name]
    assert ways(driver) == ["make", "resume", "resume"]
    [template] = templates_in(server.home)
    facts = template.facts()
    assert (facts.image, facts.driver, facts.memory_mib, facts.macs) == ("tiny", "fake", 512, ())
    assert facts.took_s > 0
    assert told == []


def test_each_is_mended_before_it_is_used(server, driver):
    """What is said to a resumed guest begins with its clock; its NIC is told by the template's address."""
    said = []
    driver.respond(r"(?s)/var/lib/vmfest/mend .*machine-id.*", lambda call: said.append(call.command) or "")
    with server.launch_group({"db": 1, "web": 1}, image="tiny") as group:
        [template] = templates_in(server.home)
        [was] = template.facts().macs
        assert len(said) == 2
        for node in group.values():
            [script] = [script for script in said if f"hostname {node.name}\n" in script]
            assert script.startswith("/var/lib/vmfest/mend 86400 250000 ")
            assert f"= {was} ]" in script
    assert ways(driver).count("make") == 1


@pytest.mark.parametrize("differing", [{"hardware": "small"}, {"image": "other"}])
def test_each_image_and_hardware_has_its_own(server, differing):
    """Who needs another kind of machine makes another template."""
    server.launch(image="tiny").destroy()
    server.launch(**{"image": "tiny", **differing}).destroy()
    assert len(templates_in(server.home)) == 2


def test_cold(tmp_path, driver, monkeypatch):
    """A server that is to be cold boots, and makes no template."""
    monkeypatch.setattr("pytest_vmfest.server.load_driver", lambda name, settings: driver)
    with Server("fake", home=tmp_path, cold=True) as server, server.launch(image="tiny") as node:
        assert list(node.timings) == ["clone", "boot", "network"]
    assert ways(driver) == ["boot"]
    assert templates_in(tmp_path) == []


def test_a_guest_that_cannot_be_frozen_boots(server, driver, told):
    """That is told once, however many there are."""
    driver.cannot = "such a machine cannot be frozen"
    for _ in range(2):
        with server.launch(image="tiny") as node:
            assert "boot" in node.timings
    assert texts(told) == ["machines boot: such a machine cannot be frozen"]
    assert ways(driver) == ["boot", "boot"]


@pytest.mark.parametrize("by", ["driver", "guest"])
def test_a_freeze_that_fails(server, driver, told, by):
    """The machine boots instead and nothing is left of the template; it is told once, and not tried again."""

    def fail(name):
        raise DriverError("no freezing today")

    if by == "driver":
        driver.on_freeze = fail
    else:
        driver.respond(r"(?s).*/proc/stat.*", Completed(1, b"", b"no freezing today"))
    for first in ("template", "clone"):
        with server.launch("db", image="tiny") as node:
            assert next(iter(node.timings)) == first
            assert "boot" in node.timings
            assert node.check_output("hostname") == "db"
            assert len(server.machines()) == 1
    assert ways(driver) == ["make", "boot", "boot"]
    assert templates_in(server.home) == []
    [text] = texts(told)
    assert text.startswith("machines boot: tiny cannot be frozen: ")
    assert "no freezing today" in text


def test_a_template_that_cannot_be_resumed(server, driver, told):
    """The machine boots instead; the template is made anew once, and when that does not help no more."""

    def fail(name):
        raise ThawError("no resuming today")

    server.launch(image="tiny").destroy()
    driver.on_thaw = fail
    for way in (["resume", "boot"], ["make", "resume", "boot"], ["boot"]):
        driver.created.clear()
        with server.launch("db", image="tiny") as node:
            assert "boot" in node.timings
            assert ("failed_start" in node.timings) == ("resume" in way), "the time that it took"
            assert node.check_output("hostname") == "db"
        assert ways(driver) == way
        assert whole(server).count(True) == 0
    assert texts(told) == ["machines boot: tiny cannot be resumed: no resuming today"]


def test_a_resume_that_fails_by_other_trouble(server, driver, told):
    """The machine boots; the template is not to blame, and stays."""

    def fail(name):
        raise DriverError("the port is taken")

    server.launch(image="tiny").destroy()
    driver.on_thaw = fail
    with server.launch(image="tiny") as node:
        assert "boot" in node.timings
    driver.on_thaw = lambda name: None
    with server.launch(image="tiny") as node:
        assert next(iter(node.timings)) == "clone"
        assert "resume" in node.timings
    assert len(told) == 1


def test_a_resumed_guest_that_cannot_be_mended(server, driver, told):
    """It boots instead, as if it had never been resumed."""
    server.launch(image="tiny").destroy()
    driver.respond(r"(?s)/var/lib/vmfest/mend .*machine-id.*", Completed(1, b"", b"no such NIC"))
    with server.launch("db", image="tiny") as node:
        assert "boot" in node.timings
        assert node.check_output("hostname") == "db"
    assert len(told) == 1


def test_a_freeze_that_fails_in_a_group(server, driver, told):
    """Those who have waited for the template boot at once."""

    def fail(name):
        raise DriverError("no freezing today")

    driver.on_freeze = fail
    with server.launch_group(3, image="tiny"):
        assert sorted(ways(driver)) == ["boot", "boot", "boot", "make"]
    assert len(told) == 1


def test_a_boot_that_fails_while_a_template_is_made(server, driver, told):
    """It is the node's own failure, as without templates; nothing is left, and the next one tries again."""
    driver.inject(FakeFault.PANICS, times=1)
    with pytest.raises(StartError, match="node 'db' did not start") as caught:
        server.launch("db", image="tiny")
    assert caught.value.stage == "running"
    assert templates_in(server.home) == []
    assert told == []
    server.launch(image="tiny").destroy()
    assert len(templates_in(server.home)) == 1


@pytest.mark.parametrize("fault", [FakeFault.CREATE_FAILS, FakeFault.START_FAILS])
def test_a_hypervisor_that_refuses_while_a_template_is_made(server, driver, told, fault):
    """It may be the template that it refuses: the machine boots, and so do others of this process."""
    driver.inject(fault, times=1)
    for _ in range(2):
        with server.launch("db", image="tiny") as node:
            assert "boot" in node.timings
    assert templates_in(server.home) == []
    [text] = texts(told)
    assert text.startswith("machines boot: tiny cannot be frozen: ")
    with Server("fake", home=server.home) as another, another.launch(image="tiny") as node:
        assert next(iter(node.timings)) == "template"


@pytest.mark.parametrize("retries", [0, 1])
def test_a_machine_that_dies_while_it_boots_for_a_template(server, driver, told, monkeypatch, retries):
    """It is told, and replaced, as one is that is to become no template; a later one makes that."""
    server.boot_retries = retries
    died = []

    def remote(name, *arguments, **more):
        if not died:
            died.append(name)
            raise wrong_state(name, MachineState.POWERED_OFF, "be reached")
        return FakeDriver.remote(driver, name, *arguments, **more)

    monkeypatch.setattr(driver, "remote", remote)
    if retries:
        server.launch(image="tiny").destroy()
        [text] = texts(told)
        assert text.startswith("did not come up: stage running")
    else:
        with pytest.raises(StartError, match="powered off and cannot be reached"):
            server.launch(image="tiny")
        assert told == []
        server.launch(image="tiny").destroy()
    assert ways(driver) == ["make", "make", "resume"]


def test_the_seconds_of_a_start_that_has_waited_for_others(server, driver):
    """They are those since the request; what is told of the boot is its own."""
    server.launch("one", image="tiny").destroy()
    templates_in(server.home)[0].give_up()
    place = Templates(driver, lambda step: None).place_of(driver.created[0])
    driver.inject(FakeFault.PANICS, times=1)
    with ThreadPoolExecutor(1) as pool:
        with place.turn(PATIENCE_S, lambda: None):
            waiting = pool.submit(server.launch, "db", image="tiny")
            time.sleep(0.5)
        error = waiting.exception(PATIENCE_S)
    assert isinstance(error, StartError)
    assert error.elapsed_s > 0.3
    assert re.search(r"stage: running, after 0\.[0-2] s of 30 s; 0\.\d s since it was asked for", str(error))


def test_a_kept_machine_that_did_not_boot_leaves_no_template(server, driver):
    """The machine is there to be looked at; what was begun of the template is not."""
    driver.inject(FakeFault.PANICS, times=1)
    with pytest.raises(StartError) as caught:
        server.launch_request(VmRequest(), server.image("tiny"), tags={}, keep_failed=True)
    assert [info.name for info in server.machines()] == list(caught.value.kept)
    assert templates_in(server.home) == []
    driver.destroy(*caught.value.kept)


def test_a_boot_that_fails_is_tried_again_for_the_template(server, driver):
    """The second machine makes it."""
    server.boot_retries = 1
    driver.inject(FakeFault.PANICS, times=1)
    with server.launch(image="tiny") as node:
        assert list(node.timings)[:2] == ["failed_start", "template"]
    assert ways(driver) == ["make", "make", "resume"]
    assert [template.facts() is not None for template in templates_in(server.home)] == [True]


def test_a_group_makes_one(server, driver):
    """One of its nodes makes it while the others wait."""
    with server.launch_group(4, image="tiny") as group:
        assert all("resume" in node.timings for node in group.values())
        assert sum("template" in node.timings for node in group.values()) == 1
    assert ways(driver).count("make") == 1


def test_who_waits_for_a_template_tells_how_long(server, driver, monkeypatch):
    """So that its other phases are where they belong; who makes it has waited for nobody."""
    monkeypatch.setattr("pytest_vmfest.launcher._cpus", lambda: 2)
    asked, both = [], threading.Event()
    driver.on_freeze = lambda name: both.wait(PATIENCE_S)

    def key(spec):
        asked.append(spec.name)
        if len(set(asked)) == 2:
            both.set()
        return "alike"

    driver.freezing_key = key
    with server.launch_group(2, image="tiny") as group:
        lists = [list(node.timings) for node in group.values()]
    assert sorted(phases[0] for phases in lists) == ["shared", "template"]
    assert [phases[1:] for phases in lists] == [["clone", "resume", "network"]] * 2


def test_that_a_node_waits_is_told_only_if_it_does(server, driver):
    """Who makes the template itself is not said to wait for others."""
    said = {"one": [], "two": []}
    others = threading.Event()

    def launch(name):
        request, model = VmRequest(), server.image("tiny")
        server.launch_request(
            request, model, name=name, progress=lambda step: said[name].append(step.text)
        ).destroy()

    driver.on_freeze = lambda name: others.wait(PATIENCE_S)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(launch, "one")
        freezing = "freezing it, as a template for others"
        wait_for(lambda: freezing in said["one"], Deadline(PATIENCE_S), what="the first to be at it")
        two = pool.submit(launch, "two")
        waiting = "waiting for others who make its template"
        wait_for(lambda: waiting in said["two"], Deadline(PATIENCE_S), what="the second to wait")
        others.set()
        one.result()
        two.result()
    assert waiting not in said["one"]
    assert said["two"].count(waiting) == 1


@pytest.fixture
def given_up(server, driver, monkeypatch):
    """Starts two nodes of different templates; b fails as soon as a has called what the function is given.

    That returns in a when a was told to give up.
    """
    reached, disconnected = threading.Event(), threading.Event()
    disconnect = Startup.disconnect

    def disconnecting(startup):
        disconnect(startup)
        if startup.machine.startswith("a-0"):
            disconnected.set()

    def linger(*_):
        reached.set()
        assert disconnected.wait(PATIENCE_S)

    def fail(call):
        assert reached.wait(PATIENCE_S)
        return 1

    def start():
        driver.respond("mine", fail, machine="b-0-*")
        with pytest.raises(GroupStartError, match="1 of 2") as caught:
            server.launch_group({"a": 1, "b": 1}, image="tiny", init_script="mine")
        assert list(caught.value.failures) == ["b-0"]

    monkeypatch.setattr("pytest_vmfest.launcher._cpus", lambda: 2)
    monkeypatch.setattr(Startup, "disconnect", disconnecting)
    driver.freezing_key = lambda spec: spec.name[:3]
    return SimpleNamespace(start=start, linger=linger, reached=reached)


def whole(server):
    """Of each template whether it is whole."""
    return [template.facts() is not None for template in templates_in(server.home)]


def test_a_group_that_is_given_up_while_a_guest_settles(server, driver, told, given_up):
    """Nothing is left of the template that was being made; that is no fault that would be told."""
    driver.respond(r"(?s).*/proc/stat.*", given_up.linger, machine="a-0-*")
    given_up.start()
    assert whole(server) == [True]
    assert ways(driver).count("boot") == 0
    assert told == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_group_that_is_given_up_during_a_freeze(server, driver, told, given_up, fails):
    """A template that is whole then is kept, and else nothing is left of it; no machine follows."""

    def freezing(name):
        if name.startswith("a-0"):
            given_up.linger()
            if fails:
                raise DriverError("broken off")

    driver.on_freeze = freezing
    given_up.start()
    assert whole(server) == ([True] if fails else [True, True])
    assert sorted(ways(driver)) == ["make", "make", "resume"]
    assert told == []


def test_a_group_that_is_given_up_during_a_resume(server, driver, told, given_up):
    """The template is not to blame for that, and stays."""

    def thawing(name):
        if name.startswith("a-0"):
            given_up.linger()
            raise DriverError("broken off")

    driver.on_thaw = thawing
    given_up.start()
    assert whole(server) == [True, True]
    assert told == []


def test_a_group_that_is_given_up_while_others_make_the_template(server, driver, told, given_up):
    """A node that waits for it waits no longer."""
    key = driver.freezing_key
    server.launch("b", image="tiny").destroy()
    [spec, _] = driver.created
    place = Templates(driver, told.append).place_of(replace(spec, name="a-0-mine"))

    def asked(spec):
        if spec.name.startswith("a-0"):
            given_up.reached.set()
        return key(spec)

    driver.freezing_key = asked
    deadline = Deadline(PATIENCE_S)
    with place.turn(PATIENCE_S, lambda: None):
        given_up.start()
    assert not deadline.expired
    assert all(spec.name.startswith("b") for spec in driver.created)
    assert told == []
