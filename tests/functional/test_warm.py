"""Machines that resume from a template: as fresh as those that boot, and nobody's twins."""

import json
import os
import signal

import psutil
import pytest
from clocks import lateness
from runs import until

from pytest_vmfest import Server
from pytest_vmfest.drivers.qemu import frozen, record
from pytest_vmfest.drivers.qemu.aio import choose_aio
from pytest_vmfest.progress import LineProgress
from pytest_vmfest.warm.templates import templates_in

pytestmark = pytest.mark.qemu

TWINS = 8
CLOCK_S = 0.05
GONE_S = 60


@pytest.fixture(autouse=True)
def _warm(monkeypatch):
    """Also where all other tests are to boot their machines."""
    monkeypatch.delenv("VMFEST_COLD", raising=False)


@pytest.fixture
def told():
    """What the server has told."""
    return []


@pytest.fixture
def server(own_home, scanned, told):
    """A server whose store has no template yet; afterwards nothing is left but templates."""
    with Server("qemu", home=own_home, progress=LineProgress(told.append)) as server:
        server.own({"test": "warm"})
        yield server
    scanned.nothing_is_left()


def test_twins_are_mended(server):
    """What one finds random is nobody else's; addresses, names and clocks are right on each."""
    with server.launch_group(TWINS, image="tiny") as group:
        nodes = list(group.values())
        for question in (
            "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'",
            "cat /proc/sys/kernel/random/uuid",
            "cat /sys/class/net/eth1/address",
            "ip -4 -o address show dev eth1 | awk '{print $4}'",
            "hostname",
        ):
            answers = [node.check_output(question) for node in nodes]
            assert len(set(answers)) == TWINS, question
            assert all(answers)
        for node in nodes:
            late_s, error_s = lateness(node)
            assert abs(late_s) < CLOCK_S + error_s, node
        nodes[0].check_output(f"ping -c 1 -w 20 {nodes[-1].name}")
    assert [template.facts().image for template in templates_in(server.home)] == ["tiny"]


def test_a_machine_is_fresh(server):
    """Nothing of what another one had on disk or in memory; its console tells of the boot as ever."""
    for _ in range(3):
        with server.launch(image="tiny") as node:
            assert node.run("cat /root/mine /run/mine").stdout == ""
            node.check_output("touch /root/mine; echo mine > /run/mine; sync")
            assert "vmfest: ready" in node.console()
            assert "resume" in node.timings


def test_a_resumed_machine_boots_anew(server):
    """A reboot, and power off and on, work as with any other machine."""
    with server.launch(image="tiny") as node:
        node.write_text("/root/mine", "kept\n")
        node.reboot()
        assert node.read_text("/root/mine") == "kept\n"
        node.instance.stop()
        node.instance.start()
        assert node.check_output("cat /root/mine; hostname") == "kept\nvm"


def test_resets_of_a_resumed_machine(server):
    """Snapshots hold all of its memory, and the clock is right after one and after a revert."""
    with server.launch(image="tiny") as node:
        node.check_output("echo one > /run/mine")
        node.snapshot("here")
        late_s, error_s = lateness(node)
        assert abs(late_s) < CLOCK_S + error_s
        for _ in range(2):
            node.check_output("echo two > /run/mine")
            node.revert("here")
            assert node.check_output("cat /run/mine") == "one"
            late_s, error_s = lateness(node)
            assert abs(late_s) < CLOCK_S + error_s


def test_disks_that_are_read_in_another_way(server, own_home, monkeypatch):
    """A machine is started as was found to work, and goes on from one that was frozen with another way."""

    def aio(node):
        pid = int((own_home / "machines" / node.instance.name / record.PID_FILE).read_text())
        [disk] = [word for word in psutil.Process(pid).cmdline() if '"qcow2"' in word]
        return json.loads(disk)["file"]["aio"]

    found = choose_aio("qemu-img", own_home)
    with monkeypatch.context() as patched:
        patched.setattr("pytest_vmfest.drivers.qemu.driver.choose_aio", lambda *_: "threads")
        with server.launch(image="tiny") as node:
            assert aio(node) == "threads"
    with Server("qemu", home=own_home) as other, other.launch(image="tiny") as node:
        assert aio(node) == found
        assert next(iter(node.timings)) == "clone", "it needed no other template"
        node.check_output("echo mine > /root/mine && sync")
        node.snapshot("here")
        node.revert("here")
        assert node.read_text("/root/mine") == "mine\n"


def test_a_template_that_cannot_be_resumed(server, told):
    """The machine boots, which is told once, and the template is made anew by the next."""
    server.launch(image="tiny").destroy()
    [template] = templates_in(server.home)
    state = template.folder / frozen.STATE
    size = state.stat().st_size
    state.chmod(0o600)
    state.write_bytes(bytes(size))
    node = server.launch(image="tiny")
    assert "boot" in node.timings
    assert node.check_output("hostname") == "vm"
    node.destroy()
    assert sum("cannot be resumed" in line for line in told) == 1
    with server.launch(image="tiny") as node:
        assert next(iter(node.timings)) == "template"
    with server.launch(image="tiny") as node:
        assert list(node.timings)[:2] == ["clone", "resume"]


def test_no_room_for_a_template(server, told, monkeypatch):
    """Machines boot, which is told once."""
    monkeypatch.setattr("pytest_vmfest.warm.templates._SPARE_MIB", 1 << 40)
    for _ in range(2):
        with server.launch(image="tiny") as node:
            assert "boot" in node.timings
    assert sum("machines boot: a template may take" in line for line in told) == 1
    assert templates_in(server.home) == []


def test_a_run_killed_while_it_makes_a_template(begin, pytester, own_home, scanned):
    """What is there by then is trusted by nobody; the next run makes it anew."""
    pytester.makepyfile("def test_it(vm_instance): vm_instance.check_output('true')")
    run = begin()

    def memory():
        return [path for path in own_home.glob("templates/*/memory") if path.stat().st_blocks > 1 << 14]

    until(memory, run, "a template to be begun")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    scanned.nothing_is_left(within_s=GONE_S)
    assert [template.facts() for template in templates_in(own_home)] == [None]
    for _ in range(2):
        pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert [template.facts() is not None for template in templates_in(own_home)] == [True]


def test_cold(pytester, own_home):
    """The option has every machine boot."""
    pytester.makepyfile("def test_it(vm_instance): assert 'boot' in vm_instance.timings")
    pytester.runpytest_subprocess("--vm-cold").assert_outcomes(passed=1)
    assert templates_in(own_home) == []


def test_workers_that_need_the_same_template(pytester, own_home):
    """One makes it, the others wait for that."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("turn", range(4))
        def test_it(vm_instance, turn):
            assert "resume" in vm_instance.timings
        """
    )
    result = pytester.runpytest_subprocess("-n", "2", "--vm-durations")
    result.assert_outcomes(passed=4)
    assert len([line for line in result.outlines if " template" in line]) == 1
    assert len(templates_in(own_home)) == 1
