"""Machines that are ready before a test asks for them, as users have them."""

SUITE = """
    import pytest
    from pytest_vmfest.waiting import Deadline, wait_for

    def test_first(vm_instance, vm_server):
        assert "spare" not in vm_instance.timings
        wait_for(lambda: len(vm_server.machines()) == 3, Deadline(20), what="two spares")
        vm_instance.write_text("/root/mine", "first")

    def test_second(vm_instance):
        assert list(vm_instance.timings) == ["spare"]
        assert vm_instance.check_output("hostname") == "vm"
        assert vm_instance.run("test -e /root/mine").exit_status == 1

    @pytest.mark.vm(hardware="small")
    def test_another_kind(vm_instance):
        assert "spare" not in vm_instance.timings
"""


def test_a_test_finds_one_ready(pytester, run_fake):
    """The first makes its own, the second takes one; one of another kind makes its own again."""
    pytester.makepyfile(SUITE)
    result = run_fake("--vm-spares", "2", "--vm-durations")
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines([r".*test_second.*", r".*\bspare\b.*"])


def test_none_without_being_asked(pytester, run_fake):
    """By default a test's machine is made for it."""
    pytester.makepyfile(
        """
        def test_first(vm_instance, vm_server):
            assert len(vm_server.machines()) == 1

        def test_second(vm_instance, vm_server):
            assert "spare" not in vm_instance.timings
            assert len(vm_server.machines()) == 1
        """
    )
    run_fake().assert_outcomes(passed=2)


def test_each_worker_has_its_own(pytester, run_fake):
    """Workers of xdist keep spares like single runs."""
    pytester.makepyfile(SUITE)
    run_fake("--vm-spares", "2", "-n", "2", "--dist", "loadfile").assert_outcomes(passed=3)


def test_what_is_no_number(pytester, run_fake):
    """It is refused with what is expected."""
    pytester.makepyfile("def test_it(): pass")
    result = run_fake("--vm-spares", "many")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*--vm-spares: 'many' is not valid*", "*a whole number*"])
