"""`--vm-console-watch`: consoles that tell of trouble make the running test fail."""

import pytest

OOM = "Out of memory: Killed process 7 (db)"
QUIET_TEST = f"""
    def test_it(vm_instance):
        vm_instance.run("echo '{OOM}' > /dev/ttyS0")
"""
ALARM = f"*the console of vm says: {OOM}*"


def test_a_test_that_would_pass_fails_with_the_line(pytester, run_fake):
    """By default an alarm is a failure, told with the line and without any code."""
    pytester.makepyfile(QUIET_TEST + "\n    def test_next(vm_instance): pass")
    result = run_fake()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([ALARM, "*vmfest: node vm *", f"alarm: {OOM}"])
    assert "pytest_vmfest/" not in result.stdout.str()


def test_a_hanging_command_is_broken_off(pytester, run_fake):
    """A test that waits for a guest in trouble fails at once."""
    pytester.makepyfile(
        f"""
        import threading

        def test_it(vm_instance):
            threading.Timer(0.5, vm_instance.send_keys, ["{OOM}", "<enter>"]).start()
            vm_instance.run("sleep 60")
            print("waited to the end")
        """
    )
    result = run_fake()
    assert "waited to the end" not in result.stdout.lines
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*ConsoleAlarmError: the console of vm says: {OOM}*"])
    assert "pytest_vmfest/" not in result.stdout.str()


def test_a_failing_test_keeps_its_own_failure(pytester, run_fake):
    """The alarm stands beside it."""
    pytester.makepyfile(QUIET_TEST + "        assert False, 'my own failure'")
    result = run_fake()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*my own failure*", f"alarm: {OOM}"])


def test_only_what_was_said_since_the_test_began_counts(pytester, run_fake):
    """A machine of a wider scope does not fail the tests that come later."""
    pytester.makepyfile(
        f"""
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module")

        def test_one(box): box.run("echo '{OOM}' > /dev/ttyS0")
        def test_two(box): assert box.check_output("echo fine") == "fine"
        """
    )
    run_fake().assert_outcomes(failed=1, passed=1)


def test_trouble_in_a_fixture(pytester, run_fake):
    """A test whose machine told of trouble in its setup is not begun."""
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def ready(vm_instance):
            vm_instance.run("echo '{OOM}' > /dev/ttyS0")
            yield
            vm_instance.check_output("echo the nodes can be used again in the teardown")

        def test_it(ready): print("begun")
        """
    )
    result = run_fake("-s")
    result.assert_outcomes(failed=1)
    assert "begun" not in result.stdout.lines
    result.stdout.fnmatch_lines([ALARM])


def test_what_a_test_expects(pytester, run_fake):
    """`Node.expect_console` allows it."""
    pytester.makepyfile(
        QUIET_TEST.replace("vm_instance.run", 'vm_instance.expect_console("Killed"); vm_instance.run')
    )
    run_fake().assert_outcomes(passed=1)


def test_warn_and_off(pytester, run_fake):
    """A warning leaves the outcome as it is; off looks at nothing."""
    pytester.makepyfile(QUIET_TEST)
    warned = run_fake("--vm-console-watch", "warn")
    warned.assert_outcomes(passed=1, warnings=1)
    warned.stdout.fnmatch_lines(["*ConsoleWarning: the console of vm says*"])
    run_fake("--vm-console-watch", "off").assert_outcomes(passed=1, warnings=0)


def test_own_patterns(pytester, run_fake):
    """The ini key's lines are added to the built-in patterns."""
    pytester.makeini("[pytest]\nvm_console_patterns =\n    FATAL: \\w+ error\n    never so")
    pytester.makepyfile(
        QUIET_TEST
        + """
    def test_own(vm_instance):
        vm_instance.run("echo 'FATAL: disk error' > /dev/ttyS0")
"""
    )
    result = run_fake()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*the console of vm says: FATAL: disk error*"])


def test_a_wrong_pattern_ends_the_run_before_it_begins(pytester, run_fake):
    """The usage error names the key and the expression."""
    pytester.makeini("[pytest]\nvm_console_patterns = (unclosed")
    pytester.makepyfile("def test_it(): pass")
    result = run_fake()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ini key vm_console_patterns: '(unclosed' is not valid*"])
