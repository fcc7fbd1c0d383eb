"""Guardians and reapers: what an owner leaves is removed, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import pytest_vmfest
from pytest_vmfest import Server, ownership
from pytest_vmfest.errors import (
    DestroyError,
    MachineExistsError,
    MachineNotFoundError,
    StartError,
    StoreError,
    WaitTimeoutError,
)
from pytest_vmfest.ledger import Kind, Ledger, Owner
from pytest_vmfest.ownership import settle_shared
from pytest_vmfest.processes import Process
from pytest_vmfest.progress import Step
from pytest_vmfest.reaper import reap, reap_dead
from pytest_vmfest.specs import ImageModel
from pytest_vmfest.waiting import Deadline, wait_for

# Makes what it is told to, on QEMU's driver, which needs no machine to run for that; then waits to be killed.
OWNER = """
import json, sys, time
from pathlib import Path
from pytest_vmfest import Server
from pytest_vmfest.processes import Process
from pytest_vmfest.progress import Step
from pytest_vmfest.specs import ImageModel

home, disk, parent, names = json.loads(sys.argv[1])
server = Server("qemu", home=home, accel="tcg")
server.own({"run": "r1"}, parent=parent and Process.of(parent))
for name in names:
    server.instance(name, ImageModel(name="empty", disk=Path(disk), format="raw"))
server.driver.create_network("lan")
print("made", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def image(tmp_path):
    """A disk that nobody boots."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    return ImageModel(name="empty", disk=disk, format="raw")


@pytest.fixture
def home(tmp_path):
    """A store; nothing may be left in it, and no process that works for it."""
    home = tmp_path / "home"
    yield home
    for process in guardians(home):
        process.kill()
    with Server("qemu", home=home) as server:
        for machine in server.machines():
            machine.destroy()
        server.driver.remove_network("lan")


@pytest.fixture
def owner(home, image):
    """Starts processes that own machines."""
    started = []

    def start(*names, parent=None):
        word = json.dumps([str(home), str(image.disk), parent, names])
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, word],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(pytest_vmfest.__file__).parents[1])},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"made\n"
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def guardians(home: Path) -> list[psutil.Process]:
    """The guardians of a store."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(
                f"vmfest-guardian of {home}" in word for word in process.cmdline()
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_guardian(home: Path) -> None:
    """Kill the guardian of a store and wait until it is gone."""
    (guardian,) = guardians(home)
    assert Process.of(guardian.pid).kill(10)


def things(home: Path) -> list[str]:
    """What is left in a store of machines, networks and ledgers."""
    return [str(path) for place in ("machines", "networks", "runs") for path in (home / place).glob("*")]


def nothing_is_left(home: Path) -> None:
    """Wait until there is neither file nor process."""
    what = "everything to be gone"
    wait_for(lambda: not things(home) and not guardians(home), Deadline(10), what=what)


def test_what_a_killed_owner_made_is_removed(owner, home):
    """Machines, networks and the ledger itself; then the guardian ends."""
    process = owner("a", "b")
    assert len(things(home)) == 5  # two machines, a network, a ledger and its guardian's log
    assert len(guardians(home)) == 1
    process.kill()
    nothing_is_left(home)


def test_the_guardian_is_not_hit_by_what_ends_pytest(owner, home):
    """It has a session of its own, does not name pytest, and lives on when it is asked to end."""
    process = owner("a")
    (guardian,) = guardians(home)
    words = [word for word in guardian.cmdline() if str(home) not in word]
    assert "pytest" not in " ".join(words)
    assert os.getsid(guardian.pid) == guardian.pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        guardian.send_signal(number)
    process.kill()
    nothing_is_left(home)


def test_an_owner_whose_parent_has_ended_is_ended_too(owner, home):
    """As an xdist worker, when its controller was killed."""
    with subprocess.Popen(["sleep", "1000"]) as parent:
        process = owner("a", parent=parent.pid)
        parent.kill()
    assert process.wait(10) == -signal.SIGTERM
    nothing_is_left(home)


def test_a_killed_guardian_is_replaced(home, image):
    """Before the next machine is made, another one watches, and the user is told."""
    told = []
    with Server("qemu", home=home, accel="tcg", progress=told.append) as server:
        server.own({"run": "r1"})
        server.instance("a", image)
        kill_guardian(home)
        server.instance("b", image)
        assert len(guardians(home)) == 1
        assert "it was killed" in told[-1].text
    nothing_is_left(home)


def test_when_both_are_killed_the_next_run_removes_it(owner, home, image):
    """Also after a power cut: what a dead owner has left is removed before anything is made, and told."""
    process = owner("a", "b")
    kill_guardian(home)
    process.kill()
    process.wait()
    told = []
    with Server("qemu", home=home, accel="tcg", progress=told.append) as server:
        server.own({"run": "r2"})
        server.instance("c", image)
        assert [machine.name for machine in server.machines()] == ["c"]
        assert [step.text for step in told] == ["a, b had been left by another run: removed"]
    nothing_is_left(home)


def test_a_living_run_is_left_alone(owner, home):
    """Neither with its guardian nor without is anything of it removed."""
    owner("a")
    assert reap_dead(home) == []
    kill_guardian(home)
    assert reap_dead(home) == []
    with Server("qemu", home=home) as server:
        assert [machine.name for machine in server.machines()] == ["a"]


def dead_owner(home: Path, **changes: object) -> Owner:
    """An owner that is no more."""
    process = Process(pid=1, start_ticks=0, boot="another")
    settings = Server("qemu", home=home).driver.settings.as_json()
    said = {"driver": "qemu", "settings": settings, "tags": {"run": "r1"}, "process": process}
    return Owner(**{**said, **changes})


def test_somebody_elses_machine_of_the_same_name_is_spared(home, image):
    """A ledger names it, as its owner tried to make one of that name; but it is another's."""
    ledger = Ledger.begin(home, dead_owner(home))
    ledger.add(Kind.MACHINE, "mine")
    with Server("qemu", home=home) as server:
        server.instance("mine", image)
        assert [reaped.removed for reaped in reap_dead(home)] == [()]
        assert server.find("mine").name == "mine"
    assert Ledger.all(home) == []


def test_what_is_half_made_is_removed(home):
    """A folder without a record, as a kill in the middle of creation leaves it."""
    ledger = Ledger.begin(home, dead_owner(home))
    ledger.add(Kind.MACHINE, "half")
    (home / "machines" / "half").mkdir(parents=True)
    assert [reaped.removed for reaped in reap_dead(home)] == [("half",)]
    assert things(home) == []


def test_a_kept_machine_lives_until_it_is_due(home, image):
    """Its run has ended; it stays, and is removed when its time is over."""
    with Server("qemu", home=home, accel="tcg") as server:
        server.own({"run": "r1"})
        server.instance("kept", image)
        server.instance("other", image)
        server.keep("kept", 1000)
    assert guardians(home) == []
    server = Server("qemu", home=home)
    assert [machine.name for machine in server.machines()] == ["kept"]
    (reaped,) = reap_dead_as_later(home)
    assert reaped.removed == ()
    assert reaped.kept["kept"] == pytest.approx(time.time() + 1000, abs=60)
    (ledger,) = Ledger.all(home)
    ledger.keep("kept", time.time() - 1)
    (reaped,) = reap_dead_as_later(home)
    assert reaped.removed == ("kept",)
    assert things(home) == []


def reap_dead_as_later(home: Path):
    """What the next run does: this process, which was the owner, has ended by then."""
    for ledger in Ledger.all(home):
        text = ledger.path.read_text()
        ledger.path.write_text(text.replace(Process.of(os.getpid()).boot, "another"))
    return reap_dead(home)


def test_a_released_machine_stays(home, image):
    """It is nobody's any more: no ledger names it."""
    with Server("qemu", home=home, accel="tcg") as server:
        server.own({"run": "r1"})
        server.instance("free", image)
        server.release("free")
    assert Ledger.all(home) == []
    assert Server("qemu", home=home).find("free").state


def test_what_cannot_be_removed_is_told_and_not_forgotten(home, image, monkeypatch):
    """The ledger stays for another try."""
    owner = dead_owner(home)
    ledger = Ledger.begin(home, owner)
    ledger.add(Kind.MACHINE, "stays")
    server = Server("qemu", home=home)
    server.instance("stays", image, tags=owner.tags)

    def refuse(name):
        raise DestroyError(f"{name} cannot be removed")

    with monkeypatch.context() as patched:
        patched.setattr(server.driver, "destroy", refuse)
        with pytest.raises(DestroyError, match="stays cannot be removed"):
            reap(ledger, server.driver, owner)
    assert list(ledger.entries().machines) == ["stays"]
    assert reap_dead(home)[0].removed == ("stays",)
    with pytest.raises(MachineNotFoundError):
        server.find("stays")


def test_a_full_disk_does_not_keep_anything_from_being_removed(home, image, monkeypatch):
    """To remove machine and ledger, nothing has to be written."""
    owner = dead_owner(home)
    ledger = Ledger.begin(home, owner)
    ledger.add(Kind.MACHINE, "a")
    Server("qemu", home=home).instance("a", image, tags=owner.tags)

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    assert [reaped.removed for reaped in reap_dead(home)] == [("a",)]
    assert things(home) == []


def test_a_ledger_of_an_unusable_driver_is_told(home):
    """The error tells why; the ledger stays."""
    ledger = Ledger.begin(home, dead_owner(home, driver="no-such-driver"))
    ledger.add(Kind.MACHINE, "a")
    (reaped,) = reap_dead(home)
    assert "no-such-driver" in reaped.error
    assert Ledger.all(home)


def test_an_empty_ledger_is_removed(home):
    """Its owner died before it wrote anything, so nothing was made."""
    ledger = Ledger.begin(home, dead_owner(home))
    ledger.path.write_text("")
    assert reap_dead(home) == []
    assert Ledger.all(home) == []


def test_without_a_guardian_nothing_is_made(home, image, monkeypatch):
    """The error says why it does not start; no machine is there."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Server("qemu", home=home, accel="tcg") as server:
        server.own({"run": "r1"})
        with pytest.raises(StoreError, match="no machine is made, as its guardian does not start"):
            server.instance("a", image)
        assert server.machines() == []
    assert things(home) == []


def test_many_begin_while_others_look_for_the_dead(home, image):
    """Neither is in the other's way: a look at who lives holds a ledger's lock for a moment only."""
    code = (
        "import sys, pathlib; from pytest_vmfest.reaper import reap_dead; print('on', flush=True)\n"
        f"while True: reap_dead(pathlib.Path({str(home)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        try:
            for turn in range(10):
                with owning(home) as server:
                    server.instance(f"m{turn}", image)
        finally:
            looking.kill()
    nothing_is_left(home)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b'{"driver": 1, "settings": {}, "tags": {}}', None])
def test_an_odd_file_is_in_nobodys_way(home, image, content):
    """Neither damaged files nor folders among the ledgers keep a run from working."""
    odd = home / "runs" / "odd.ledger"
    odd.parent.mkdir(parents=True)
    odd.mkdir() if content is None else odd.write_bytes(content)
    with owning(home) as server:
        server.driver.owner.make_room({"a": 1}, 0)
        server.instance("a", image)
    assert Server("qemu", home=home).machines() == []
    odd.rmdir() if content is None else odd.unlink(missing_ok=True)


def test_what_has_no_owner_that_can_be_read_is_left_alone(home):
    """It is told, and not forgotten: it may be of another version."""
    ledger = Ledger.begin(home, dead_owner(home))
    ledger.add(Kind.MACHINE, "a")
    ledger.path.write_text(ledger.path.read_text().replace('"process"', '"handle"'))
    assert "does not say whose it is" in reap_dead(home)[0].error
    assert Ledger.all(home)


def test_a_forked_child_leaves_its_parents_machines(home, image):
    """What a child's end unwinds is not the child's."""
    with owning(home) as server:
        server.instance("a", image)
        child = os.fork()
        if child == 0:
            server.driver.owner.settle()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(guardians(home)) == 1
        assert server.find("a").state
    nothing_is_left(home)


def test_odd_paths_do_not_keep_a_guardian_from_its_work(home, image, tmp_path, monkeypatch):
    """Neither entries that are no text, nor a module of the tests that is called like a standard one."""
    (tmp_path / "select.py").write_text("raise SystemExit('not the standard one')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), tmp_path, *sys.path])
    with owning(home) as server:
        server.instance("a", image)
        assert len(guardians(home)) == 1
    nothing_is_left(home)


def test_the_same_name_twice(home, image):
    """The second is refused, and the first is still owned: it goes with its owner."""
    with owning(home) as server:
        server.instance("a", image)
        with pytest.raises(MachineExistsError):
            server.instance("a", image)
        with owning(home) as other, pytest.raises(MachineExistsError):
            other.instance("a", image)
        assert server.find("a").state
    nothing_is_left(home)


def test_a_machine_that_cannot_be_released_goes(home, image, monkeypatch):
    """It is told, so that nobody believes that it stays."""
    with owning(home) as server:
        server.instance("a", image)
        with monkeypatch.context() as full:
            full.setattr(Ledger, "_append", refuse_to_write)
            with pytest.raises(StoreError):
                server.release("a")
    nothing_is_left(home)


def refuse_to_write(*arguments):
    """As a full disk does."""
    raise StoreError("cannot write: No space left on device")


def test_a_kept_machine_of_a_process_that_lives_on(home, image):
    """As in a notebook: when its time is over, it is removed, though its owner's process still lives."""
    with owning(home) as server:
        server.instance("kept", image)
        server.keep("kept", 1000)
    assert reap_dead(home)[0].removed == ()
    (ledger,) = Ledger.all(home)
    ledger.keep("kept", time.time() - 1)
    assert reap_dead(home)[0].removed == ("kept",)


def test_owning_anew_settles_what_was_owned(home, image):
    """Under other tags, another ledger begins; what the first names is removed."""
    with owning(home) as server:
        server.instance("a", image)
        server.own({"run": "r2"})
        assert server.machines() == []
        server.instance("b", image)
    nothing_is_left(home)


# --- shared ----------------------------------------------------------------------------------------


def sharing(home: Path, controller: Process) -> Server:
    """A worker's server for what all workers of a run share."""
    server = Server("qemu", home=home, accel="tcg")
    server.own_for(controller, {"run": "r1"})
    return server


def test_what_is_shared_belongs_to_the_controller(home, image):
    """A worker's end leaves it; any worker can have it kept; the controller removes the rest."""
    controller = Process.of(os.getpid())
    with sharing(home, controller) as maker, sharing(home, controller) as other:
        maker.instance("a", image)
        maker.instance("b", image)
        other.keep("b", 1000)
    assert len(guardians(home)) == 1
    settle_shared(home, "r1")
    assert guardians(home) == []
    assert [machine.name for machine in Server("qemu", home=home).machines()] == ["b"]
    assert list(reap_dead(home)[0].kept) == ["b"]


def test_when_the_controller_dies_its_guardian_removes_what_is_shared(home, image):
    """Whichever worker made it, and though that lives on."""
    with subprocess.Popen(["sleep", "1000"]) as controller:
        with sharing(home, Process.of(controller.pid)) as worker:
            worker.instance("a", image)
        assert len(things(home)) == 3
        controller.kill()
    nothing_is_left(home)


# --- room ------------------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch):
    """A host on which machines may have 1000 MiB."""
    monkeypatch.setattr(ownership, "limit_mib", lambda: 1000)


def owning(home: Path, told: list[Step] | None = None) -> Server:
    """A server whose machines are this process's own."""
    server = Server("qemu", home=home, accel="tcg", progress=(told if told is not None else []).append)
    server.own({"run": "r1"})
    return server


def test_machines_wait_for_memory(home, room):
    """Who wants more than is free waits, and says so, until others have given theirs back."""
    told = []
    with owning(home) as one, owning(home, told) as other:
        one.driver.owner.make_room({"a": 600}, 0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(other.driver.owner.make_room, {"b": 300, "c": 300}, 60)
            wait_for(lambda: told, Deadline(10), what="the line")
            assert not waiting.done()
            one.driver.owner.is_gone(Kind.MACHINE, "a")
            waiting.result(10)
    assert [step.text for step in told] == [
        "waiting for 2 machines with 600 MiB of memory; 600 MiB of 1000 MiB are in use by machines"
    ]
    nothing_is_left(home)


def test_all_of_a_group_or_none(home, room):
    """A group that does not fit reserves nothing, so that two groups cannot block each other half-made."""
    with owning(home) as one, owning(home) as other:
        one.driver.owner.make_room({"a": 600}, 0)
        with pytest.raises(WaitTimeoutError, match="no room for 2 machines with 600 MiB"):
            other.driver.owner.make_room({"b": 300, "c": 300}, 0)
        other.driver.owner.make_room({"d": 400}, 0)


def test_who_would_wait_for_himself_goes_on(home, room):
    """What only he himself could give back is not waited for; that there is so much of it is told."""
    told = []
    with owning(home, told) as server:
        server.driver.owner.make_room({"a": 600}, 0)
        server.driver.owner.make_room({"b": 600}, 1000)
    assert [step.text for step in told] == [
        "1200 MiB for own machines; machines should have 1000 MiB at most"
    ]


def test_one_that_is_alone_may_take_all(home, room):
    """It is for the host to say no to it; the next one waits."""
    with owning(home) as one, owning(home) as other:
        one.driver.owner.make_room({"a": 2000}, 0)
        with pytest.raises(WaitTimeoutError):
            other.driver.owner.make_room({"b": 10}, 0)


def test_a_spare_has_only_what_is_free(home, room):
    """It can be done without, so nobody else goes short for it; who needs more than that removes it."""
    with owning(home) as server:
        owner = server.driver.owner
        with pytest.raises(WaitTimeoutError):
            owner.make_room({"a": 2000}, 0, spare=True)
        owner.make_room({"b": 1000}, 0, spare=True)
        asked = []
        owner.when_full = lambda: not asked and not asked.append(owner.is_gone(Kind.MACHINE, "b"))
        with pytest.raises(WaitTimeoutError):
            owner.make_room({"c": 600}, 0, spare=True)
        assert not asked
        owner.make_room({"d": 600}, 0)
        assert asked


def test_a_start_that_fails_gives_its_room_back(home, room, image):
    """Of machines that were not even made, nothing is reserved any more."""
    with owning(home) as server:
        broken = ImageModel(name="broken", disk=image.disk.with_name("gone"), format="raw")
        with pytest.raises(StartError):
            server.launch(image=broken)
        server.driver.owner.make_room({"a": 1000}, 0)
