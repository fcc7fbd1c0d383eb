"""What failing tests' reports tell of the machines."""

import os
from xml.etree import ElementTree

import pytest

FAILS = """
    def test_fails(vm_instance):
        vm_instance.run("echo something happened > /dev/ttyS0")
        assert vm_instance.check_output("echo 1; echo oh dear >&2") == "2"
"""
TOLD = [
    "*vmfest: node vm (machine vm-*, image tiny)*",
    "state: running; ssh *root@127.0.0.1*",
    "commands:",
    "  $ echo 1; echo oh dear >&2",
    "    exit status 0 after * s",
    "    stdout:",
    "      1",
    "    stderr:",
    "      oh dear",
    "console since the test began:",
    "  | *something happened",
]


def test_a_failing_test_tells_of_its_machine(pytester, run_fake):
    """State, way in, commands and console stand below the test's own failure."""
    pytester.makepyfile(FAILS)
    result = run_fake()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError*", *TOLD])


@pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
def test_under_xdist(pytester, run_fake):
    """The controller shows what the worker found out, output that is no text included."""
    pytester.makepyfile(
        FAILS
        + """
    def test_bytes(vm_instance, vm_server):
        from pytest_vmfest.remote import Completed
        vm_server.driver.respond("blob", Completed(0, b"begin \\xff end", b""))
        vm_instance.run("blob")
        assert False
"""
    )
    result = run_fake("-n", "2", "--junitxml", "junit.xml")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(TOLD)
    assert result.stdout.str().count("vmfest: node vm") == 2
    failures = ElementTree.parse(pytester.path / "junit.xml").findall(".//failure")
    assert [str(failure.text).count("vmfest: node vm") for failure in failures] == [1, 1]
    result.stdout.fnmatch_lines(["      begin * end"])


def test_in_junits_xml(pytester, run_fake):
    """The failure's text in JUnit's XML holds it, and the terminal still shows it once."""
    pytester.makepyfile(FAILS)
    result = run_fake("--junitxml", "junit.xml")
    assert result.stdout.str().count("vmfest: node vm") == 1
    failure = ElementTree.parse(pytester.path / "junit.xml").find(".//failure")
    assert "something happened" in failure.text
    assert "oh dear" in failure.text


def test_passing_and_expected_failures_tell_nothing(pytester, run_fake):
    """Only what failed is explained."""
    pytester.makepyfile(
        """
        import pytest

        def test_passes(vm_instance): pass

        @pytest.mark.xfail
        def test_expected(vm_instance): assert False
        """
    )
    result = run_fake("-rA")
    result.assert_outcomes(passed=1, xfailed=1)
    assert "vmfest: node" not in result.stdout.str()


def test_every_node_of_a_group_is_told(pytester, run_fake):
    """Each node has a section of its own."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(nodes={"db": 1, "web": 2})
        def test_fails(vm_group): assert False
        """
    )
    run_fake().stdout.fnmatch_lines([f"*vmfest: node {name} *" for name in ("db-0", "web-0", "web-1")])


def test_a_fixture_that_fails_in_setup_and_one_in_teardown(pytester, run_fake):
    """Errors of a user's fixtures tell of the machine too, though it is gone when the teardown has failed."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def broken(vm_instance):
            vm_instance.check_output("echo setting up; false")

        @pytest.fixture
        def untidy(vm_instance):
            yield
            vm_instance.check_output("echo tidying up; false")

        def test_one(broken): pass
        def test_two(untidy): pass
        """
    )
    result = run_fake()
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_one*",
            "state: running*",
            "*$ echo setting up; false",
            "*ERROR at teardown of test_two*",
            "state: destroyed after the test",
            "*$ echo tidying up; false",
            "  | Fake Linux*",
        ]
    )


def test_a_machine_of_a_wider_scope_tells_of_this_test_alone(pytester, run_fake):
    """What its console said in earlier tests is left out."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module")

        def test_one(box):
            box.run("echo in the first > /dev/ttyS0")

        def test_two(box):
            box.run("echo in the second > /dev/ttyS0")
            assert False
        """
    )
    result = run_fake()
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert "  | in the second" in text
    assert "  | in the first" not in text
    assert "  | Fake Linux" not in text


def test_trouble_hides_no_failure(pytester, run_fake):
    """When the machine is gone, the report says so in a line beside the test's own failure."""
    pytester.makepyfile(
        """
        def test_fails(vm_instance):
            vm_instance.destroy()
            assert False, "my own failure"
        """
    )
    result = run_fake()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*my own failure*", "state: unknown", "its console cannot be told: there is no machine named 'vm-*'"]
    )
