"""How long everything took: in JUnit's XML, and drawn as a timeline."""

import os
import re
from xml.etree import ElementTree

import pytest

SUITE = """
    import pytest
    from pytest_vmfest import instance_fixture
    box = instance_fixture(scope="module", reset=True)

    @pytest.mark.vm(nodes=2)
    def test_group(vm_group): pass

    def test_first(box): pass
    def test_second(box): assert False
    def test_plain(): pass

    @pytest.mark.skip
    def test_skipped(vm_instance): pass
"""
SUITE_FILE = "test_suite.py"
WORKERS = [
    [],
    pytest.param(["-n", "2"], marks=pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")),
]


def properties(pytester, path="junit.xml"):
    """The names of our properties by test; their values are seconds."""
    found = {}
    for case in ElementTree.parse(pytester.path / path).iter("testcase"):
        ours = [one.attrib for one in case.iter("property") if one.get("name").startswith("vmfest.")]
        assert all(re.fullmatch(r"\d+\.\d{3}", one["value"]) for one in ours)
        found[case.get("name")] = [one["name"].removeprefix("vmfest.") for one in ours]
    return found


def timeline_of(pytester):
    """The page that the run has drawn."""
    return (pytester.path / "line.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("workers", WORKERS)
def test_phases_are_properties_in_junits_xml(pytester, run_fake, workers):
    """A test has those of its own machines, and those of a wider scope that its setup made."""
    pytester.makepyfile(test_suite=SUITE)
    run_fake("--junitxml", "junit.xml", *workers, *(["--dist", "loadfile"] if workers else []))
    told = properties(pytester)
    nodes = [f"node-{n}.{phase}" for n in range(2) for phase in ("clone", "boot", "network", "teardown")]
    own = ["setup", "test", "teardown"]
    made = ["image", "vm.clone", "vm.boot", "vm.network", "vm.snapshot"]
    assert set(told["test_group"]) >= {"image", *own, *nodes}
    assert {*made, *own} <= set(told["test_first"])
    assert "vm.teardown" not in told["test_first"]
    assert {"vm.reset", *own, "vm.teardown"} <= {*told["test_second"], *told["test_skipped"]}
    assert "vm.boot" not in told["test_second"]
    assert told["test_plain"] == []


def test_a_test_that_is_run_again_has_the_properties_of_the_last_time(pytester, run_fake):
    """What it did before is not added to them."""
    pytester.makeconftest(
        """
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            runtestprotocol(item, nextitem=nextitem, log=False)
            item._initrequest()
            runtestprotocol(item, nextitem=nextitem)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            return True
        """
    )
    pytester.makepyfile("def test_it(vm_instance): pass")
    run_fake("--junitxml", "junit.xml").assert_outcomes(passed=1)
    assert properties(pytester)["test_it"].count("vm.boot") == 1


def test_starts_that_failed_took_time_too(pytester, run_fake):
    """Those of machines that were replaced, and of one that never came up."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest.drivers.fake import FakeFault

        @pytest.fixture
        def faulty(vm_server, request):
            vm_server.driver.inject(FakeFault.START_FAILS, times=request.param)
            yield
            vm_server.driver.heal()

        @pytest.mark.parametrize("faulty", [1, 2], indirect=True)
        def test_it(faulty, vm_instance): pass
        """
    )
    run_fake("--junitxml", "junit.xml", "--vm-timeline", "line.html").assert_outcomes(passed=1, errors=1)
    told = properties(pytester)
    assert {"vm.failed_start", "vm.boot"} <= set(told["test_it[1]"])
    assert "vm.failed_start" in told["test_it[2]"]
    assert "vm.boot" not in told["test_it[2]"]
    assert "failed_start: 0.0" in timeline_of(pytester)


@pytest.mark.parametrize("workers", WORKERS)
def test_the_timeline(pytester, run_fake, workers):
    """All workers' tests and machines are in one file, which the terminal names."""
    pytester.makepyfile(test_suite=SUITE)
    result = run_fake("--vm-timeline", "line.html", *workers)
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    result.stdout.fnmatch_lines([f"vmfest: timeline: {pytester.path / 'line.html'}"])
    page = timeline_of(pytester)
    for test in ("test_group", "test_first", "test_second"):
        assert page.count(f'"name" type="button" title="{SUITE_FILE}::{test}') == 1
    assert f'title="{SUITE_FILE}: box"' in page
    assert "✗ test_second" in page
    assert "test_skipped" not in page
    assert "test_plain" not in page
    lanes = set(re.findall(r"worker (\w+)\"", page))
    assert lanes <= {"gw0", "gw1"} if workers else lanes == {"main"}


@pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
def test_each_worker_has_a_lane(pytester, run_fake):
    """The controller draws what all have sent."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("turn", range(4))
        def test_it(vm_instance, turn): pass
        """
    )
    run_fake("--vm-timeline", "line.html", "-n", "2").assert_outcomes(passed=4)
    assert timeline_of(pytester).count('<details class="worker"') == 2


@pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
def test_a_worker_that_crashes(pytester, run_fake):
    """What it has reported until then is told; nothing is told twice."""
    pytester.makepyfile(
        """
        import os, pytest

        def test_before(vm_instance): pass
        def test_crash(vm_instance): os._exit(1)
        def test_after(vm_instance): pass
        """
    )
    arguments = ["--vm-timeline", "line.html", "--vm-durations", "--junitxml", "junit.xml"]
    result = run_fake(*arguments, "-n", "1")
    result.assert_outcomes(passed=2, failed=1)
    page = timeline_of(pytester)
    assert re.findall(r'<details class="worker".*\n.*?"name">(\w+)', page) == ["gw0", "gw1"]
    for test in ("test_before", "test_crash", "test_after"):
        assert page.count(f'title="test_a_worker_that_crashes.py::{test}"') == 1
        assert len(re.findall(rf'title="setup: [\d.]+ s\ntest_a_worker_that_crashes.py::{test}\n', page)) == 2
        assert len(re.findall(rf'title="boot: [\d.]+ s\ntest_a_worker_that_crashes.py::{test}\n', page)) == 1
    assert "vm.boot" in properties(pytester)["test_before"]
    lines = result.stdout.str().partition("durations in seconds")[2]
    assert [line for line in lines.splitlines() if line.startswith("test_")] == [
        f"test_a_worker_that_crashes.py::{test}" for test in ("test_before", "test_crash", "test_after")
    ]


def test_a_run_without_machines_draws_that_too(pytester, run_fake):
    """No file of a run before passes for this one's."""
    pytester.makepyfile("def test_it(): pass")
    (pytester.path / "line.html").write_text("of a run before")
    run_fake("--vm-timeline", "line.html").assert_outcomes(passed=1)
    assert "No machines were used in this run" in timeline_of(pytester)


def test_what_runs_no_test_draws_nothing(pytester, run_fake):
    """Nor is a file of a run before touched."""
    pytester.makepyfile("def test_it(vm_instance): pass")
    (pytester.path / "line.html").write_text("of a run before")
    run_fake("--vm-timeline", "line.html", "--collect-only")
    assert timeline_of(pytester) == "of a run before"


def test_a_file_that_cannot_be_written_is_a_line_at_the_end(pytester, run_fake):
    """The run's result is what it would have been."""
    pytester.makepyfile("def test_it(vm_instance): pass")
    (pytester.path / "taken").write_text("")
    result = run_fake("--vm-timeline", "taken/line.html")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["vmfest: --vm-timeline: cannot write */taken/line.html: *"])


def test_an_interrupted_run_is_drawn(pytester, run_fake):
    """Up to where it came."""
    pytester.makepyfile("def test_it(vm_instance): raise KeyboardInterrupt")
    assert run_fake("--vm-timeline", "line.html").ret == pytest.ExitCode.INTERRUPTED
    assert "boot: " in timeline_of(pytester)
