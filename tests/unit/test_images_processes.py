"""Several processes at one image store, and processes that die at work."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from pytest_vmfest.errors import ImageExistsError
from pytest_vmfest.images import recipes
from pytest_vmfest.images.recipes import Recipe
from pytest_vmfest.images.store import ImageStore
from pytest_vmfest.specs import Identity, ImageModel
from pytest_vmfest.waiting import Deadline, wait_for

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 30
MIB = 1 << 20


def make_disk(path, text="content"):
    """A raw disk of 2 MiB."""
    path.write_bytes(text.encode().ljust(510, b"\0") + b"\x55\xaa" + b"x" * (2 * MIB - 512))
    return path


def build_toy(folder, identity, progress):
    """A recipe whose product tells which process made it."""
    return ImageModel("toy", make_disk(folder / "disk.raw", f"by {os.getpid()}"), "raw")


def no_identity():
    """Keys that nobody uses."""
    return Identity(Path("none"), "", "", "")


def work(home, pipe, operation, argument, options):
    """The process: do one operation, stop at the first step that is a measure until told to go on."""
    recipes.RECIPES = {"toy": Recipe("toy", "a toy", build_toy, list)}

    def progress(step):
        pipe.send(step.text)
        if step.done:
            pipe.recv()

    store = ImageStore(home, no_identity, progress)
    try:
        model = getattr(store, operation)(argument, **options)
        pipe.send((model.name, model.disk.read_bytes()[:100].rstrip(b"\0").decode()))
    except ImageExistsError as error:
        pipe.send(error.message)


class Worker:
    """A process at work on the store, one step at a time."""

    def __init__(self, home, operation, argument, **options):
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=work, args=(home, theirs, operation, argument, options))
        self.process.start()
        theirs.close()
        self.said = []

    def until(self, text):
        """Wait until it tells the step ``text``, letting nothing go on."""
        while text not in self.said:
            assert self.pipe.poll(PATIENCE_S), f"never said {text!r}, only {self.said}"
            self.said.append(self.pipe.recv())

    def finish(self):
        """Let it go on to its end; the name of its model and the text in its disk, or its error's message."""
        while True:
            while self.pipe.poll(0.02):
                said = self.pipe.recv()
                if isinstance(said, tuple) or "installed already" in said:
                    self.process.join(PATIENCE_S)
                    return said
                self.said.append(said)
            # It may have come to its end just now.
            with contextlib.suppress(BrokenPipeError):
                self.pipe.send("go on")

    def kill(self):
        """End it at once, as ``kill -9`` does."""
        self.process.kill()
        self.process.join(PATIENCE_S)


@pytest.fixture
def start(tmp_path):
    """Start workers; none outlives the test."""
    workers = []

    def start(operation, argument, **options):
        workers.append(Worker(tmp_path / "home", operation, argument, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


@pytest.fixture
def store(tmp_path):
    """The store, as the test's own process sees it."""
    return ImageStore(tmp_path / "home", no_identity)


def unfinished(store):
    """What is in the store that is no model."""
    return [path.name for path in (store.home / "images").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("operation", ["add", "resolve"])
def test_one_copies_the_other_waits_and_uses_it(start, store, tmp_path, operation):
    """Of two processes that add the same file one works; the other says that it waits, and has the result."""
    disk = make_disk(tmp_path / "disk.raw")
    first = start(operation, disk)
    first.until("copying")
    second = start(operation, disk)
    second.until("waiting for another process that installs it")
    assert first.finish() == second.finish() == ("disk", "content")
    assert "copying" not in second.said
    assert store.names() == ["disk"]


def test_one_builds_the_other_waits_and_uses_it(start, store):
    """Of two processes that need the same recipe's image one builds it."""
    first = start("resolve", "toy")
    first.until("checking")
    second = start("resolve", "toy")
    second.until("waiting for another process that installs it")
    assert first.finish() == second.finish() == ("toy", f"by {first.process.pid}")


def test_another_image_of_the_same_name(start, store, tmp_path):
    """Two files of one name at once: `add` refuses the second, `resolve` gives it a name of its own."""
    (tmp_path / "b").mkdir()
    disk, other = make_disk(tmp_path / "disk.raw"), make_disk(tmp_path / "b/disk.raw", "other")
    first = start("add", disk)
    first.until("copying")
    adder, resolver = start("add", other), start("resolve", other)
    for waiting in (adder, resolver):
        waiting.until("waiting for another process that installs it")
    assert first.finish() == ("disk", "content")
    assert adder.finish().startswith("an image 'disk' is installed already")
    name, text = resolver.finish()
    assert name.startswith("disk-")
    assert text == "other"
    assert store.resolve(other).name == name


def test_different_names_go_in_parallel(start, store, tmp_path):
    """A process at work on one image stops nobody who installs another, nor clears its folder away."""
    disk = make_disk(tmp_path / "disk.raw")
    first = start("add", disk, name="one")
    first.until("copying")
    assert store.add(disk, name="two").name == "two"
    assert first.finish() == ("one", "content")
    assert store.names() == ["one", "two"]


@pytest.mark.parametrize("next_name", ["one", "two"])
def test_killed_in_the_middle(start, store, tmp_path, next_name):
    """After kill -9 the store is as before, and whoever installs something next clears the rest away."""
    disk = make_disk(tmp_path / "disk.raw")
    store.add(disk, name="before")
    worker = start("add", disk, name="one")
    worker.until("copying")
    worker.kill()
    assert store.names() == ["before"]
    assert len(unfinished(store)) == 1
    store.add(disk, name=next_name)
    assert unfinished(store) == []
    assert store.names() == sorted(["before", next_name])


def test_a_waiting_process_goes_on_when_the_other_is_killed(start, store, tmp_path):
    """Who waits for a process that dies does the work itself."""
    disk = make_disk(tmp_path / "disk.raw")
    first = start("resolve", disk)
    first.until("copying")
    second = start("resolve", disk)
    second.until("waiting for another process that installs it")
    first.kill()
    assert second.finish() == ("disk", "content")
    assert unfinished(store) == []


def test_killed_between_the_two_renames(store, tmp_path):
    """A model that was being replaced when its process died is found again, complete."""
    model = store.add(make_disk(tmp_path / "disk.raw"), name="one")
    images = store.home / "images"
    for look in (
        store.get,
        store.resolve,
        lambda name: store.add(tmp_path / "disk.raw", name="two") and model,
    ):
        (images / "one").rename(images / ".replaced-one@0123abcd")
        assert look("one") == model
        assert unfinished(store) == []
        assert store.get("one") == model


def test_the_rest_of_a_replaced_model_is_cleared_away(store, tmp_path):
    """A process that died after the second rename leaves the old model aside: it goes."""
    disk = make_disk(tmp_path / "disk.raw")
    store.add(disk, name="one")
    (store.home / "images/.replaced-one@0123abcd").mkdir()
    store.add(disk, name="two")
    assert unfinished(store) == []
    assert store.names() == ["one", "two"]


def test_two_forced_builds_at_once_are_one(start, store):
    """A forced build that waited for another one takes what that has just made."""
    old = start("build", "toy")
    assert old.finish() == ("toy", f"by {old.process.pid}")
    first = start("build", "toy", force=True)
    first.until("checking")
    second = start("build", "toy", force=True)
    second.until("waiting for another process that installs it")
    assert first.finish() == second.finish() == ("toy", f"by {first.process.pid}")


def test_threads_are_kept_apart_as_well(store, tmp_path):
    """Threads of one process that want the same image install it once."""
    from concurrent.futures import ThreadPoolExecutor

    disk = make_disk(tmp_path / "disk.raw")
    copied = []

    def progress(step):
        if step.text == "copying":
            copied.append(step)
            time.sleep(0)

    shared = ImageStore(store.home, no_identity, progress)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(shared.resolve, [disk] * 8))
    assert len(set(models)) == 1
    assert len(copied) == 2


def test_readers_never_see_half_a_model(start, store, tmp_path):
    """While models come and go, every listing has only complete ones."""
    disk = make_disk(tmp_path / "disk.raw")
    worker = start("add", disk, name="come")
    worker.until("copying")
    assert store.list() == []
    worker.pipe.send("go on")
    worker.pipe.send("go on")
    models = wait_for(store.list, Deadline(PATIENCE_S), what="the model", interval_s=0)
    store.verify("come")
    assert models == [store.get("come")]
