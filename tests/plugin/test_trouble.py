"""Trouble of the infrastructure: one clear setup error, never a failed test, and nothing left."""

import os
import sys
from pathlib import Path

import pytest

ONE_TEST = "def test_it(vm_instance): pass"


@pytest.fixture
def run_qemu(pytester):
    """Run one test that needs a machine on the QEMU driver."""
    pytester.makepyfile(ONE_TEST)

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("--vm-driver", "qemu", "-p", "no:cacheprovider", *arguments)

    return run


def test_no_qemu(run_qemu, monkeypatch):
    """Without QEMU the error names the package and the command that installs it."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    result = run_qemu()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*qemu-system-x86*", "*vmfest doctor --install*"])


def test_unknown_image(run_qemu):
    """The error lists what there is and says how to add more."""
    result = run_qemu("--vm-image", "tinny")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*tinny*", "*vmfest image add*"])


def test_a_file_that_is_no_disk(run_qemu, tmp_path):
    """A path to something else than a disk image is refused by name, and the store stays empty."""
    (tmp_path / "letter.qcow2").write_text("Dear Sir or Madam")
    result = run_qemu("--vm-image", str(tmp_path / "letter.qcow2"))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*letter.qcow2*"])
    assert not list((tmp_path / "vmfest-home" / "images").glob("*"))


def test_a_store_that_cannot_be_written(run_qemu, monkeypatch, tmp_path):
    """The error names the folder, the reason and the variable that moves the store."""
    (tmp_path / "file").write_text("")
    (tmp_path / "disk.img").write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "file" / "home"))
    result = run_qemu("--vm-image", str(tmp_path / "disk.img"))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*file/home*", "*VMFEST_HOME*"])


def test_errors_show_no_frames_of_ours(run_qemu):
    """The report is the message alone; --full-trace shows the rest."""
    assert "pytest_vmfest/" not in run_qemu("--vm-image", "tinny").stdout.str()
    assert "pytest_vmfest/" in run_qemu("--vm-image", "tinny", "--full-trace").stdout.str()


def test_errors_of_a_users_own_fixture_show_its_lines(pytester, run_fake):
    """A command that fails in a user's fixture is shown with the line that ran it."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def installed(vm_instance):
            vm_instance.check_output("exit 7")  # the line in question

        def test_it(installed): pass
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*# the line in question*", "*exited with 7*"])


def test_a_pytest_inside_a_worker_is_a_run_of_its_own(pytester, run_fake, monkeypatch):
    """A pytest that a test starts under xdist does not take its machines for the outer worker's."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "outer")
    pytester.makepyfile(
        """
        def test_it(vm_instance):
            tags = vm_instance.instance.info.tags
            assert (tags["worker"], tags["run"] == "outer") == ("main", False)
        """
    )
    run_fake("-p", "no:xdist").assert_outcomes(passed=1)


def test_kept_machines_are_told(pytester, run_fake):
    """With --vm-keep failed, the summary shows how to get into the failed test's machine, and no other."""
    pytester.makepyfile(
        """
        def test_fails(vm_instance):
            assert vm_instance.check_output("echo 1") == "2"

        def test_passes(vm_instance):
            pass
        """
    )
    result = run_fake("--vm-keep", "failed")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*vmfest: machines kept*",
            "*of test_*::test_fails*",
            "*ssh *root@*",
            "*vmfest instance destroy vm-*",
        ]
    )
    assert "of test_kept_machines_are_told.py::test_passes" not in result.stdout.str()
    assert "machines kept" not in run_fake("--vm-keep", "never").stdout.str()


def test_machines_that_are_off_or_gone_are_no_trouble_to_keep(pytester, run_fake):
    """With --vm-keep always, one that is off is listed without an ssh line, and a destroyed one is not."""
    pytester.makepyfile(
        """
        def test_off(vm_instance):
            vm_instance.instance.power_down()

        def test_gone(vm_instance):
            vm_instance.instance.destroy()
        """
    )
    result = run_fake("--vm-keep", "always")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*of test_*::test_off*", "*vmfest instance console vm-*"])
    assert result.stdout.str().count("vmfest instance destroy") == 1


def test_a_machine_that_did_not_start_is_kept_and_told(pytester, run_fake):
    """With --vm-keep failed, the machine of a failed start is in the summary."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(init_script="false")
        def test_it(vm_instance): pass
        """
    )
    result = run_fake("--vm-keep", "failed")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*vmfest: machines kept*", "*vmfest instance destroy vm-*"])


def test_a_failing_destroy_is_an_error_of_the_teardown(pytester, run_fake):
    """A machine that cannot be destroyed is reported as an error beside the passed test."""
    pytester.makepyfile(
        """
        from pytest_vmfest.drivers.fake import FakeFault

        def test_it(vm_instance, vm_server):
            vm_server.driver.inject(FakeFault.DESTROY_FAILS, times=1)
        """
    )
    result = run_fake()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_it*", "*cannot be destroyed*"])


@pytest.mark.parametrize("plugin", ["terminal", "setupplan", "capture"])
def test_it_works_without_pytests_own_plugins(pytester, run_fake, plugin):
    """Where parts of pytest are switched off, tests and their errors still come out."""
    pytester.makepyfile("def test_it(vm_instance): pass\ndef test_error(vm_instance, nothing_such): pass")
    result = run_fake("-p", f"no:{plugin}")
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
def test_workers_have_machines_of_their_own_and_tell_the_controller(pytester, run_fake):
    """Under xdist, durations and kept machines of all workers are told at the end."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="session")

        @pytest.mark.parametrize("turn", range(4))
        def test_it(box, worker_id, turn):
            assert box.instance.info.tags["worker"] == worker_id
        """
    )
    result = run_fake("-n", "2", "--vm-keep", "always", "--vm-durations")
    result.assert_outcomes(passed=4)
    assert result.stdout.str().count("vmfest instance destroy vm-") == 2
    result.stdout.fnmatch_lines(["*vmfest: durations*", "*clone *"])
