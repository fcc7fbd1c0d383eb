"""A guest whose kernel panics under a test."""

import time

import pytest

from pytest_vmfest.errors import ConnectionLostError

PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"


@pytest.mark.vm(image="tiny")
def test_a_panic_ends_a_running_command_and_a_revert_heals(vm_instance):
    """A command without any timeout ends with the panic's line; after a revert or a start the node works."""
    vm_instance.expect_console("Kernel panic")
    vm_instance.snapshot("well")
    began = time.monotonic()
    with pytest.raises(ConnectionLostError, match=r"panicked: .*Kernel panic - not syncing"):
        vm_instance.run(PANIC)
    assert time.monotonic() - began < 60
    with pytest.raises(ConnectionLostError, match="panicked"):
        vm_instance.run("true")
    vm_instance.revert("well")
    assert vm_instance.check_output("hostname") == vm_instance.name
    with pytest.raises(ConnectionLostError, match="panicked"):
        vm_instance.run(PANIC)
    vm_instance.instance.power_down()
    vm_instance.instance.start()
    assert vm_instance.check_output("uname -s") == "Linux"
