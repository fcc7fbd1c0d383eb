"""The host's clock set forward and back: deadlines, owners and connections do not go by it."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

import pytest
from ssh_server import needs_sshd

from pytest_vmfest import Server, WaitTimeoutError
from pytest_vmfest.ledger import Kind, Ledger, Owner
from pytest_vmfest.processes import Process
from pytest_vmfest.reaper import reap_dead
from pytest_vmfest.ssh import protocol
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ssh_server import OpenSsh

DAY_S = 24 * 3600.0


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time since the epoch forward, or back, by some seconds."""
    real = time.time

    def step(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return step


@pytest.fixture(params=[[DAY_S, 0], [0, DAY_S], [0, -DAY_S]], ids=["forward", "to and fro", "back"])
def restless_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is another by a day each time that somebody looks."""
    real, steps = time.time, itertools.cycle(request.param)
    monkeypatch.setattr(time, "time", lambda: real() + next(steps))


@pytest.mark.usefixtures("restless_clock")
def test_deadlines_hold() -> None:
    """They end when they should, neither sooner nor a day later."""
    began = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"not within 0\.2 s"):
        wait_for(lambda: False, Deadline(0.2), what="never")
    assert 0.2 <= time.monotonic() - began < 10


@pytest.mark.usefixtures("restless_clock")
def test_a_node_lives_as_ever(tmp_path: Path) -> None:
    """Boot, commands, snapshots, timeouts, listing and end."""
    with Server("fake", home=tmp_path) as server:
        server.own({"run": "r1"})
        with server.launch("one", image="tiny") as one, server.launch("two", image="tiny") as two:
            one.snapshot("here")
            one.revert("here")
            two.reboot()
            assert one.check_output("echo 1", timeout_s=10) == "1"
            with pytest.raises(WaitTimeoutError):
                two.wait_until("false", timeout_s=0.2)
            assert {machine.name for machine in server.machines()} == {one.instance.name, two.instance.name}
        assert server.machines() == []


@needs_sshd
@pytest.mark.usefixtures("restless_clock")
def test_ssh_works(openssh: OpenSsh, tmp_path: Path) -> None:
    """Logins, commands and files, although the SSH library looks at the clock for its own time limits."""
    for _ in range(3):
        remote = openssh.connect()
        done = remote.execute("sleep 0.3; cat", input=bytes(1 << 20), deadline=Deadline(60))
        assert (done.exit_status, len(done.stdout)) == (0, 1 << 20)
        remote.write_bytes(str(tmp_path / "file"), b"content", Deadline(60))
        assert remote.read_bytes(str(tmp_path / "file"), Deadline(60)) == b"content"
        remote.close()


@needs_sshd
def test_a_guest_is_still_asked_for_a_sign_of_life(
    openssh: OpenSsh, set_clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the clock set back, a guest that is gone without a word is not noticed a day later."""
    monkeypatch.setattr("pytest_vmfest.ssh.login.KEEPALIVE_S", 0.2)
    asked: list[str] = []
    monkeypatch.setattr(
        protocol.GuestTransport, "global_request", lambda self, kind, *more, **how: asked.append(kind)
    )
    remote = openssh.connect()
    set_clock(-DAY_S)
    wait_for(lambda: len(asked) > 1, Deadline(20), what="signs of life to be asked for")
    remote.close()


@pytest.mark.parametrize("step_s", [DAY_S, -DAY_S], ids=["forward", "back"])
def test_a_living_run_stays_alive(tmp_path: Path, set_clock: Callable[[float], None], step_s: float) -> None:
    """Its process is known by ticks since the host booted, and its machines are not taken for leftovers."""
    owner = Owner(
        "qemu", Server("qemu", home=tmp_path).driver.settings.as_json(), {}, Process.of(os.getpid())
    )
    ledger = Ledger.begin(tmp_path, owner)
    ledger.add(Kind.MACHINE, "a")
    set_clock(step_s)
    assert reap_dead(tmp_path) == []
    assert owner.process.alive
    assert list(ledger.entries().machines) == ["a"]


@pytest.mark.parametrize(("step_s", "kept"), [(DAY_S, False), (-DAY_S, True)], ids=["forward", "back"])
def test_a_kept_machine_is_due_by_the_clock(
    tmp_path: Path, set_clock: Callable[[float], None], step_s: float, kept: bool
) -> None:
    """Set forward beyond its time, it goes with the next run; set back, it stays until then, as it says."""
    dead = Process(pid=1, start_ticks=0, boot="another")
    server = Server("qemu", home=tmp_path)
    owner = Owner("qemu", server.driver.settings.as_json(), {"run": "r1"}, dead)
    ledger = Ledger.begin(tmp_path, owner)
    ledger.add(Kind.MACHINE, "a")
    ledger.keep("a", time.time() + 3600)
    folder = tmp_path / "machines" / "a"
    folder.mkdir(parents=True)
    set_clock(step_s)
    (reaped,) = reap_dead(tmp_path)
    assert (reaped.removed, list(reaped.kept)) == (((), ["a"]) if kept else (("a",), []))
    assert folder.exists() is kept
