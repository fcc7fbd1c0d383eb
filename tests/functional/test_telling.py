"""What failing tests on real machines tell and leave."""

import json

from pytest_vmfest import Server
from pytest_vmfest.request import VmRequest

TESTS = """
    import time
    import pytest

    pytestmark = pytest.mark.vm(image="tiny")

    def test_fails(vm_instance):
        vm_instance.run("echo '<2>so far so good' > /dev/kmsg; uname -s; exit 3")
        assert False, "my own failure"

    def test_memory(vm_instance):
        assert vm_instance.check_output("echo an ordinary boot is no alarm")
        began = time.monotonic()
        try:
            vm_instance.run(
                "(echo 1000 > /proc/self/oom_score_adj; exec sleep 999) &"
                " (sleep 1; echo f > /proc/sysrq-trigger) & exec tail -f /dev/null"
            )
        finally:
            print("broken off:", time.monotonic() - began < 60)
"""


def test_a_failing_test_on_a_real_machine(pytester, own_home, vm_server):
    """Report and folder tell of commands, console and screen; the OOM killer fails its test at once."""
    pytester.makepyfile(test_it=TESTS)
    driver = ("--vm-driver", vm_server.driver.name)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--vm-artifacts", "kept", *driver)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*my own failure*",
            "state: running; ssh *",
            "*$ echo '<2>so far so good*",
            "    exit status 3 after *",
            "      Linux",
            "  | *so far so good*",
            "*the console of vm says: *Out of memory: Killed process*",
            "broken off: True",
            "alarm: *Out of memory: Killed process*",
        ]
    )
    node = pytester.path / "kept" / "last" / "test_it.py-test_fails" / "vm"
    assert "so far so good" in (node / "console.log").read_text()
    assert "exit status 3" in (node / "commands.log").read_text()
    assert (node / "screenshot.png").read_bytes().startswith(b"\x89PNG")
    info = json.loads((node / "info.json").read_text())
    assert (info["state"], info["image"], info["trouble"]) == ("running", "tiny", [])


def test_a_machine_that_dies_while_it_boots_is_replaced(own_home, vm_server):
    """A fresh machine becomes the node, and a line tells of the first one."""
    told, killed = [], []
    with Server(vm_server.driver.name, home=own_home, boot_retries=1, progress=told.append) as server:

        def kill_the_first(step):
            if step.text.startswith("booting") and not killed:
                killed.append(step)
                server.find("twice").power_down()

        request, model = VmRequest(), server.image("tiny")
        launched = server.launch_request(request, model, machine="twice", tags={}, progress=kill_the_first)
        with launched as node:
            assert node.check_output("uname -s") == "Linux"
            assert [machine.name for machine in server.machines()] == ["twice"]
        assert server.machines() == []
    assert [step.text.partition(":")[0] for step in told] == ["did not come up"]
