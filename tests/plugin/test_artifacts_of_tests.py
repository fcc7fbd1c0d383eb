"""`--vm-artifacts`: what is kept of failing tests, and where."""

import json
import os

import pytest

FAILS = """
    def test_fails(vm_instance):
        vm_instance.run("echo something happened > /dev/ttyS0")
        assert False

    def test_passes(vm_instance): pass
"""


def test_failing_tests_leave_a_folder_each(pytester, run_fake):
    """Console, commands, screen and facts are kept of what failed, and the report names the folder."""
    pytester.makepyfile(test_it=FAILS)
    result = run_fake("--vm-artifacts", "kept")
    kept = pytester.path / "kept"
    (run,) = [path for path in kept.iterdir() if path.name != "last"]
    assert (kept / "last").resolve() == run
    assert [path.name for path in run.iterdir()] == ["test_it.py-test_fails"]
    node = run / "test_it.py-test_fails" / "vm"
    names = sorted(path.name for path in node.iterdir())
    assert names == ["commands.log", "console.log", "info.json", "screenshot.png"]
    assert "something happened" in (node / "console.log").read_text()
    assert "$ echo something" in (node / "commands.log").read_text()
    assert (node / "screenshot.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((node / "info.json").read_text())["test"] == "test_it.py::test_fails"
    result.stdout.fnmatch_lines([f"artifacts: {node}"])


def test_a_run_without_failures_leaves_nothing(pytester, run_fake):
    """Nothing failed, nothing is kept; a mere collection touches nothing at all."""
    pytester.makepyfile("def test_it(vm_instance): pass")
    run_fake("--vm-artifacts", "kept").assert_outcomes(passed=1)
    assert list((pytester.path / "kept").iterdir()) == []
    run_fake("--vm-artifacts", "untouched", "--collect-only")
    assert not (pytester.path / "untouched").exists()


def test_ini_and_environment(pytester, run_fake, monkeypatch):
    """The folder can be set by ini key and environment, too."""
    pytester.makepyfile(FAILS)
    pytester.makeini("[pytest]\nvm_artifacts = of-ini")
    run_fake()
    monkeypatch.setenv("VMFEST_ARTIFACTS", "of-environment")
    run_fake()
    assert (pytester.path / "of-ini" / "last").is_dir()
    assert (pytester.path / "of-environment" / "last").is_dir()


@pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
def test_workers_share_the_run_and_no_folder(pytester, run_fake):
    """Under xdist there is one run; parametrized tests, long and odd ids have folders of their own."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("case", ["a/b", "a:b", "a b", "x" * 600, "x" * 601])
        def test_fails(vm_instance, case):
            vm_instance.write_text("/root/x", case)
            assert False
        """
    )
    run_fake("-n", "2", "--dist", "each", "--tx", "2*popen", "--vm-artifacts", "kept").assert_outcomes(
        failed=10
    )
    assert len(list((pytester.path / "kept").iterdir())) == 2
    folders = list((pytester.path / "kept" / "last").iterdir())
    infos = [json.loads((folder / "vm" / "info.json").read_text()) for folder in folders]
    assert len({(info["test"], info["worker"]) for info in infos}) == 10


def test_a_test_that_is_run_again_has_a_folder_for_each_time(pytester, run_fake):
    """Reruns within a session do not overwrite what was kept before."""
    pytester.makeconftest(
        """
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                runtestprotocol(item, nextitem=nextitem)
            return True
        """
    )
    pytester.makepyfile(
        test_it="""
        turns = []

        def test_fails(vm_instance):
            turns.append("turn")
            vm_instance.run(f"echo turn {len(turns)} > /dev/ttyS0")
            assert False
        """
    )
    run_fake("--vm-artifacts", "kept").assert_outcomes(failed=2)
    last = pytester.path / "kept" / "last"
    consoles = [last / f"test_it.py-test_fails{number}" / "vm" / "console.log" for number in ("", "-2")]
    assert [console.read_text().splitlines()[-1] for console in consoles] == ["turn 1", "turn 2"]


def test_a_start_that_fails_leaves_its_console(pytester, run_fake):
    """The error names the folder; the console is in it. In a group, that of each node that failed."""
    pytester.makepyfile(
        test_it="""
        import pytest
        from pytest_vmfest.drivers.fake import FakeFault

        @pytest.fixture
        def faulty(vm_server):
            vm_server.driver.inject(FakeFault.PANICS, machine="*")
            yield
            vm_server.driver.heal()

        def test_one(faulty, vm_instance): pass

        @pytest.mark.vm(nodes=1)
        def test_group(faulty, vm_group): pass

        @pytest.mark.vm(nodes=2, init_script="echo from the script > /dev/ttyS0; false")
        def test_group_of_two(vm_group): pass
        """
    )
    result = run_fake("--vm-artifacts", "kept")
    result.assert_outcomes(errors=3)
    last = pytester.path / "kept" / "last"
    assert "Kernel panic" in (last / "test_it.py-test_one" / "vm" / "console.log").read_text()
    assert "Kernel panic" in (last / "test_it.py-test_group" / "node-0" / "console.log").read_text()
    consoles = list(last.glob("test_it.py-test_group_of_two/*/console.log"))
    assert consoles
    assert all("from the script" in console.read_text() for console in consoles)
    result.stdout.fnmatch_lines(
        ["*vmfest: node vm, which did not start*", "artifacts: */test_it.py-test_one/vm"]
    )


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_ends_the_run_before_it_begins(pytester, run_fake, place):
    """The usage error names the folder and the reason."""
    pytester.makepyfile("def test_it(): pass")
    (pytester.path / "file").touch()
    result = run_fake("--vm-artifacts", place)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--vm-artifacts: cannot write to */{place}*"])


def test_disk_trouble_later_is_a_line_in_the_report(pytester, run_fake):
    """The tests go on, and their own failures are shown."""
    pytester.makepyfile(
        """
        import pathlib, shutil

        def test_fails(vm_instance):
            run = pathlib.Path("kept/last").resolve()
            run.rmdir()
            run.touch()  # nothing can be created in there
            assert False, "my own failure"

        def test_passes(vm_instance): pass
        """
    )
    result = run_fake("--vm-artifacts", "kept")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*my own failure*", "artifacts cannot be kept: *"])
