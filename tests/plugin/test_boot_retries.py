"""A machine that does not come up is replaced, once and visibly; what fails then is no test's failure."""

import pytest

BOOT_FAILS = """
    import pytest
    from pytest_vmfest import instance_fixture
    from pytest_vmfest.drivers.fake import FakeFault

    @pytest.fixture
    def faulty(vm_server, request):
        vm_server.driver.inject(FakeFault.START_FAILS, times={times})
        yield
        vm_server.driver.heal()

    def test_it(faulty, vm_instance):
        assert vm_instance.check_output("echo fine") == "fine"
"""


def test_a_boot_that_fails_once_is_told_and_the_test_passes(pytester, run_fake):
    """A line says which machine did not come up, and why."""
    pytester.makepyfile(BOOT_FAILS.format(times=1))
    result = run_fake()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["vmfest: machine vm-*: did not come up: stage running, * does not start*"])


def test_a_boot_that_fails_twice_is_an_error(pytester, run_fake):
    """The setup error tells of both machines; the test has not failed."""
    pytester.makepyfile(BOOT_FAILS.format(times=2))
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*did not start*", "*another machine had failed before: stage running*"])


def test_how_often_is_an_option(pytester, run_fake):
    """`--vm-boot-retries 0` tries once; a wrong number is a usage error."""
    pytester.makepyfile(BOOT_FAILS.format(times=1))
    run_fake("--vm-boot-retries", "0").assert_outcomes(errors=1)
    pytester.makepyfile(BOOT_FAILS.format(times=3))
    run_fake("--vm-boot-retries", "3").assert_outcomes(passed=1)
    result = run_fake("--vm-boot-retries", "some")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_reset_that_fails_is_an_error(pytester, run_fake):
    """Trouble in making a machine pristine is the setup's."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module", reset=True)

        def test_one(box): box.instance.delete_snapshot("vmfest-pristine")
        def test_two(box): pass
        """
    )
    run_fake().assert_outcomes(passed=1, errors=1)
