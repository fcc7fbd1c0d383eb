"""Trouble of the infrastructure in the middle of a test: an error, never a failed test."""

import os
from functools import partial
from xml.etree import ElementTree

import pytest

WORKERS = [
    [],
    pytest.param(["-n", "2"], marks=pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")),
]
KILLED = """
    def test_killed(vm_instance, vm_server):
        vm_server.driver.abort(vm_instance.instance.name)
        vm_instance.run("true")
"""
OFF = """
    def test_off(vm_instance):
        vm_instance.run("poweroff")
        vm_instance.run("true")
"""


@pytest.mark.parametrize("workers", WORKERS)
def test_a_killed_hypervisor_is_an_error_in_all_reports(pytester, run_fake, workers):
    """In the terminal and in JUnit's XML; a guest that powers itself off is a failure as before."""
    pytester.makepyfile(KILLED + OFF)
    result = run_fake("-v", "--junitxml", "junit.xml", *workers)
    result.assert_outcomes(errors=1, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*ERROR at call of test_killed*",
            "*MachineGoneError: machine 'vm-*' is aborted",
            "*vmfest: node vm *",
            "trouble of the infrastructure: its hypervisor's process ended by itself or was killed",
        ]
    )
    result.stdout.fnmatch_lines(["FAILED *::test_off*", "ERROR *::test_killed*"])
    (suite,) = ElementTree.parse(pytester.path / "junit.xml").iter("testsuite")
    assert [suite.get(name) for name in ("tests", "errors", "failures")] == ["2", "1", "1"]
    ends = {case.get("name"): [one.tag for one in case] for case in suite.iter("testcase")}
    assert "error" in ends["test_killed"]
    assert "failure" not in ends["test_killed"]
    assert "failure" in ends["test_off"]
    assert "vmfest: node vm" in suite.find(".//error").text


def test_it_counts_as_not_passed(pytester, run_fake):
    """For -x, for --lf, and for --vm-keep failed."""
    pytester.makepyfile("    def test_first(): pass" + KILLED + "\n    def test_next(): pass")
    run = partial(pytester.runpytest_subprocess, "--vm-driver", "fake")
    result = run("-x", "--vm-keep", "failed")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*vmfest: machines kept*"])
    run("--lf").assert_outcomes(errors=1)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("inject(FakeFault.START_FAILS); vm_server.launch(image='tiny')", "StartError: node 'vm' did not"),
        ("inject(FakeFault.START_FAILS); vm_server.launch_group(2, image='tiny')", "GroupStartError"),
        ("inject(FakeFault.CREATE_FAILS); vm_server.instance('m', 'tiny')", "DriverError: machine 'm'"),
        ("inject(FakeFault.DESTROY_FAILS, times=1); box.destroy()", "DestroyError"),
        ("vm_server.driver.abort(box.name); box.snapshot('s'); box.send_keys('x')", "is aborted and cannot"),
        ("raise RuntimeError('see above') from StoreError('full')", "RuntimeError: see above"),
        ("raise ExceptionGroup('all', [ValueError(), StoreError('full')])", "ExceptionGroup: all"),
    ],
)
def test_other_trouble_of_the_infrastructure(pytester, run_fake, body, told):
    """What a hypervisor or the store refuses to a test that makes its machines itself."""
    pytester.makepyfile(
        f"""
        from pytest_vmfest.drivers.fake import FakeFault
        from pytest_vmfest.errors import StoreError

        def test_it(vm_server):
            box, inject = vm_server.instance("box", "tiny"), vm_server.driver.inject
            box.start()
            {body}
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ERROR at call of test_it*", f"*{told}*"])


@pytest.mark.parametrize(
    "body",
    [
        "vm_server.find('none-such')",
        "vm_server.instance('box', 'tiny')",
        "vm_server.instance('lan', 'tiny', network='bridged')",
        "box.send_keys('x')",
        "vm_server.image('tiny').nothing_such",
    ],
)
def test_what_is_a_tests_own_fault(pytester, run_fake, body):
    """Asking for what cannot be is a failure."""
    pytester.makepyfile(
        f"""
        def test_it(vm_server):
            box = vm_server.instance("box", "tiny")
            {body}
        """
    )
    run_fake().assert_outcomes(failed=1)


def test_a_panic_is_a_failure(pytester, run_fake):
    """What is tested may have caused it; also if its hypervisor has ended since."""
    pytester.makepyfile(
        """
        def test_it(vm_instance, vm_server):
            vm_instance.run("echo 'Kernel panic - not syncing: oh' > /dev/ttyS0")
            vm_server.driver.abort(vm_instance.instance.name)
            assert False
        """
    )
    run_fake().assert_outcomes(failed=1)


def test_a_machine_that_its_hypervisor_has_halted(pytester, run_fake):
    """As one is whose disk has no space left on the host."""
    pytester.makepyfile(
        """
        def test_it(vm_instance, vm_server, monkeypatch):
            monkeypatch.setattr(vm_server.driver, "standstill", lambda name: "there is no space left")
            vm_instance.pause()
            vm_instance.run("true")
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*stands still: there is no space left", "trouble of *: there is no*"])


def test_a_failure_that_hides_the_hypervisors_end(pytester, run_fake):
    """A test may notice it in its own way, such as by a request that nobody answers."""
    pytester.makepyfile(
        """
        def test_it(vm_instance, vm_server):
            vm_server.driver.abort(vm_instance.instance.name)
            raise ConnectionRefusedError("nobody listens there")
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nobody listens there*", "trouble of the infrastructure: its*"])


def test_without_a_run(pytester, run_fake):
    """A test that brings a server of its own is judged likewise."""
    pytester.makepyfile(
        """
        from pytest_vmfest import Server

        def test_it():
            with Server("fake") as server, server.launch(image="tiny") as node:
                server.driver.abort(node.instance.name)
                node.run("true")
        """
    )
    run_fake().assert_outcomes(errors=1)


def test_what_a_test_expects_and_what_is_expected_of_it(pytester, run_fake):
    """A test that catches the error passes, and one that is marked as failing fails as expected."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest.errors import MachineGoneError

        def test_catches(vm_instance, vm_server):
            vm_server.driver.abort(vm_instance.instance.name)
            with pytest.raises(MachineGoneError):
                vm_instance.run("true")

        @pytest.mark.xfail
        def test_expected(vm_instance, vm_server):
            vm_server.driver.abort(vm_instance.instance.name)
            vm_instance.run("true")
        """
    )
    run_fake().assert_outcomes(passed=1, xfailed=1)
