"""Beside other plugins, where only real machines show it: those that outlive a process, and are shared."""

import pytest
from test_sharing import CLUSTER, notes

pytestmark = pytest.mark.qemu

# What the guardian may take; the process was ended without any teardown.
GONE_S = 5


def test_a_time_out_by_a_thread(pytester, scanned):
    """It ends pytest at once; the machine is gone all the same, and the next run works."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.timeout(2, method="thread", func_only=True)
        def test_hangs(vm_instance): vm_instance.run("sleep 1000")

        def test_never_reached(): pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*Timeout*"])
    assert "passed" not in result.stdout.str()
    scanned.nothing_is_left(within_s=GONE_S)
    pytester.makepyfile("def test_next(vm_instance): vm_instance.check_output('true')")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    scanned.nothing_is_left()


def test_a_time_out_by_a_thread_in_a_worker(pytester, scanned):
    """The worker is ended; the test's second try has a fresh machine in another worker."""
    pytester.makepyfile(
        """
        import pathlib, pytest

        @pytest.mark.timeout(2, method="thread", func_only=True)
        def test_flaky(vm_instance):
            assert not vm_instance.run("test -e /root/used").ok
            vm_instance.write_text("/root/used", "")
            again = pathlib.Path("again").exists()
            pathlib.Path("again").touch()
            if not again:
                vm_instance.run("sleep 1000")
        """
    )
    result = pytester.runpytest_subprocess("-n", "1", "-p", "rerunfailures", "--reruns", "1")
    assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
    scanned.nothing_is_left(within_s=GONE_S)


def test_a_time_out_by_a_signal(pytester, scanned):
    """The command is broken off, and the next test goes on with the same machine."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest import instance_fixture

        box = instance_fixture(scope="module")

        @pytest.mark.timeout(2, method="signal", func_only=True)
        def test_hangs(box):
            box.write_text("/root/used", "")
            box.run("sleep 1000")

        def test_after(box): box.check_output("test -e /root/used")
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Timeout*", "  $ sleep 1000", "*broken off: Failed*"])
    scanned.nothing_is_left()


def test_shared_machines_with_tests_in_any_order_that_are_run_again(pytester, scanned):
    """They are made once for all workers and tries."""
    pytester.makepyfile(
        CLUSTER
        + """
    @pytest.mark.parametrize("turn", range(6))
    def test_it(cluster, turn):
        note(turn, *[node.check_output("cat /proc/sys/kernel/random/boot_id") for node in cluster.values()])
        while len({line.split()[0] for line in notes()}) < 2:  # so that neither worker does all
            time.sleep(0.1)
        assert turn or cluster["node-0"].run("mkdir /root/tried").exit_status
    """
    )
    beside = ("-p", "randomly", "--randomly-seed=1", "-p", "rerunfailures", "--reruns", "1")
    result = pytester.runpytest_subprocess("-n", "2", *beside)
    assert result.parseoutcomes() == {"passed": 6, "rerun": 1}
    assert len({worker for worker, *_ in notes(pytester)}) == 2
    assert len({tuple(boots) for _, _, *boots in notes(pytester)}) == 1
    scanned.nothing_is_left()
