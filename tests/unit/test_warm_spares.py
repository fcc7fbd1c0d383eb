"""Nodes that are ready before somebody asks for them, on the fake driver."""

import os
import threading
import time

import pytest

from pytest_vmfest import Server, StartError
from pytest_vmfest.request import VmRequest
from pytest_vmfest.startup import GivenUpError
from pytest_vmfest.waiting import Deadline, wait_for
from pytest_vmfest.warm import spares as spares_module
from pytest_vmfest.warm.spares import Kind, Spares, _Spare

PATIENCE_S = 20


@pytest.fixture
def server(tmp_path):
    """A server without a hypervisor; whatever a test does, no machine may be left."""
    with Server("fake", home=tmp_path) as server:
        yield server
        assert server.machines() == []


@pytest.fixture
def told():
    """What was told."""
    return []


@pytest.fixture
def spares(told):
    """Two spares at most."""
    spares = Spares(2, told.append)
    yield spares
    spares.close()


def kind(server, key="a", has_room=lambda: True):
    """Nodes of one kind."""

    def launch(over):
        return server.launch_request(VmRequest(), server.image(key), cancelled=over)

    return Kind(key, launch, has_room)


def count(server, image="a"):
    """How many machines there are of an image."""
    return sum(info.image == image for info in server.driver.machines())


def await_count(server, expected, image="a"):
    """Wait until there are so many machines of an image."""
    what = f"{expected} machines of {image}"
    wait_for(lambda: count(server, image) == expected, Deadline(PATIENCE_S), what=what, interval_s=0.005)


def await_ready(spares, key="a"):
    """The node that is ready, as soon as there is one."""
    return wait_for(lambda: spares.take(key), Deadline(PATIENCE_S), what="a spare", interval_s=0.005)


def test_nothing_is_made_before_somebody_asked(server, spares):
    """There is none then, and none is made of a kind that nobody wants."""
    assert spares.take("a") is None
    assert server.machines() == []


def test_as_many_as_asked_for(server, spares):
    """Those that are taken are made up for; each is another machine, and tells that it was ready."""
    spares.want(kind(server))
    await_count(server, 2)
    first, second = await_ready(spares), await_ready(spares)
    assert first.instance.name != second.instance.name
    assert list(first.timings) == ["spare"]
    spares.want(kind(server))
    await_count(server, 4)
    for node in (first, second):
        node.destroy()


def test_another_kind_takes_their_place(server, spares):
    """No more than so many are kept, of the kind that was asked for last."""
    spares.want(kind(server, "a"))
    await_count(server, 2, "a")
    assert spares.take("b") is None
    spares.want(kind(server, "b"))
    await_count(server, 2, "b")
    await_count(server, 0, "a")


@pytest.mark.parametrize("trouble", ["aborted", "gone", "disconnected"])
def test_one_that_is_not_well_is_not_given(server, spares, trouble):
    """It is removed, and the next one is given."""
    spares.want(kind(server))
    await_count(server, 2)
    node = await_ready(spares)
    with spares._changed:
        spares._ready.insert(0, _Spare("a", node, time.monotonic()))
    name = node.instance.name
    if trouble == "aborted":
        server.driver.abort(name)
    elif trouble == "gone":
        server.driver.destroy(name)
    else:
        node.disconnect()
    other = await_ready(spares)
    assert other.instance.name != name
    assert name not in [info.name for info in server.driver.machines()]
    other.destroy()


def test_no_room(server, spares, monkeypatch):
    """None is made until there is."""
    monkeypatch.setattr(spares_module, "_ROOM_POLL_S", 0.01)
    asked, room = threading.Event(), []

    def has_room():
        asked.set()
        return bool(room)

    spares.want(kind(server, has_room=has_room))
    assert asked.wait(PATIENCE_S)
    assert server.machines() == []
    room.append(True)
    await_count(server, 2)


@pytest.mark.parametrize("error", [StartError("no luck", stage="running", elapsed_s=1), OSError("no luck")])
def test_a_kind_that_cannot_be_made(server, spares, told, error):
    """It is tried once, and told by who asks next; other kinds are made."""
    tried = threading.Semaphore(0)

    def fail(over):
        tried.release()
        raise error

    for _ in range(2):
        spares.want(Kind("bad", fail, lambda: True))
        assert tried.acquire(timeout=PATIENCE_S) or told
        spares.want(kind(server))
        await_count(server, 2)
        await_ready(spares).destroy()
        tried.release()
    assert [step.text for step in told] == ["none of this kind: no luck"]


def test_room_that_somebody_needs(server, spares):
    """Those that are ready are removed, and there are none until one is wanted again."""
    assert not spares.give_back()
    spares.want(kind(server))
    await_count(server, 2)
    assert wait_for(lambda: len(spares._ready) == 2, Deadline(PATIENCE_S), what="both to be ready")
    assert spares.give_back()
    assert server.machines() == []
    assert not spares.give_back()
    spares.want(kind(server))
    await_count(server, 2)


def test_idle_ones_are_removed(server, spares, monkeypatch):
    """They give their memory back when nobody has taken them for long."""
    monkeypatch.setattr(spares_module, "_ROOM_POLL_S", 0.01)
    spares.want(kind(server))
    await_count(server, 2)
    monkeypatch.setattr(spares_module, "_IDLE_S", 0.0)
    await_count(server, 0)


def test_the_end(server, spares):
    """One that is being made is told to give up, and those that are ready are removed."""
    begun, told = threading.Event(), threading.Event()

    def slowly(over):
        over.when_set(told.set)
        begun.set()
        assert told.wait(PATIENCE_S)
        raise GivenUpError

    spares.want(kind(server, "a"))
    await_count(server, 2)
    node = await_ready(spares)
    spares.want(Kind("b", slowly, lambda: True))
    assert begun.wait(PATIENCE_S)
    spares.close()
    assert count(server) == 1
    node.destroy()


def test_a_process_that_a_test_forks(server, spares):
    """It has no spares: those that are ready are its parent's, and stay."""
    spares.want(kind(server))
    wait_for(lambda: len(spares._ready) == 2, Deadline(PATIENCE_S), what="both to be ready")
    broken = []
    spares._over.when_set(lambda: broken.append("off"))
    child = os.fork()
    if child == 0:
        taken = spares.take("a")
        spares.want(kind(server, "b"))
        given = spares.give_back()
        spares.close()
        # Not by sys.exit: the rest is the parent's.
        os._exit(0 if (taken, given, count(server), broken) == (None, False, 2, []) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    node = await_ready(spares)
    assert node.check_output("hostname") == "vm"
    node.destroy()


def test_a_launch_that_ends_after_the_end(server, spares, monkeypatch):
    """Its node is removed by the thread that made it."""
    monkeypatch.setattr(spares_module, "_GIVEN_UP_S", 0.01)
    begun, go_on = threading.Event(), threading.Event()

    def deaf(over):
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return server.launch_request(VmRequest(), server.image("a"))

    spares.want(Kind("a", deaf, lambda: True))
    assert begun.wait(PATIENCE_S)
    spares.close()
    go_on.set()
    spares._thread.join(PATIENCE_S)
    assert server.machines() == []


def test_memory(server, tmp_path, spares, monkeypatch):
    """Spares take only what is free; a machine that finds none takes theirs."""
    monkeypatch.setattr("pytest_vmfest.ownership.limit_mib", lambda: 3 * 512)
    server.own({"run": "1"})
    server.when_full = spares.give_back
    request, model = VmRequest(), server.image("a")

    def launch(over):
        return server.launch_request(request, model, cancelled=over)

    with server.launch_request(request, model):
        spares.want(Kind("a", launch, lambda: server.has_room_for(request, model)))
        await_count(server, 3)
        assert not server.has_room_for(request, model)
        with server.launch_group_request(VmRequest(nodes=2), model):
            assert count(server) == 3, "the group, and the machine from before"
