"""Machines that xdist workers share: real ones, as other processes have to find them."""

import os
import re
import signal
import subprocess
import sys

import pytest
import scan

from pytest_vmfest.waiting import Deadline, wait_for

GONE_S = 60
CLUSTER = """
    import os, pathlib, time
    import pytest
    from pytest_vmfest import group_fixture

    cluster = group_fixture(scope="session", nodes=2, shared=True)

    def note(*words):
        with open("notes", "a") as notes:
            print(os.getpid(), *words, file=notes)

    def notes():
        return pathlib.Path("notes").read_text().splitlines()
"""


def notes(pytester) -> list[list[str]]:
    """What the tests wrote down: which process, and what."""
    path = pytester.path / "notes"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_all_workers_use_the_same_machines(pytester, scanned):
    """They are made once, each worker reaches them by connections of its own, and afterwards all are gone."""
    pytester.makepyfile(
        CLUSTER
        + """
    @pytest.mark.parametrize("turn", range(2))
    def test_it(cluster, turn):
        note(*[node.check_output("cat /proc/sys/kernel/random/boot_id") for node in cluster.values()])
        cluster["node-0"].check_output("ping -c 1 node-1")
        while len(notes()) < 2:  # so that neither worker does both
            time.sleep(0.1)
    """
    )
    pytester.runpytest_subprocess("-n", "2", "--vm-timeline", "line.html").assert_outcomes(passed=2)
    (one, *boots), (other, *others) = notes(pytester)
    assert one != other
    assert boots == others
    timeline = (pytester.path / "line.html").read_text(encoding="utf-8")
    assert len(re.findall(r'title="(?:boot|resume): ', timeline)) == 2, "made"
    # Also those who made them may have waited, for one another's template.
    assert timeline.count('title="shared: ') in (2, 3), "waited for"
    end = float(re.search(r'data-end="([\d.]+)"', timeline)[1])
    lives = re.findall(r'class="life" style="--s:([\d.]+);--d:([\d.]+)"', timeline)
    assert [float(began) + float(lasted) for began, lasted in lives] == [pytest.approx(end, abs=0.01)] * 2
    scanned.nothing_is_left(within_s=GONE_S)


@pytest.mark.any_driver
def test_the_maker_dies(pytester, scanned):
    """The machines stay for the others, and are gone when the run is over."""
    pytester.makepyfile(
        CLUSTER
        + """
    @pytest.mark.parametrize("turn", range(2))
    def test_it(cluster, turn):
        note("began")
        while not pathlib.Path("maker-is-dead").exists():
            time.sleep(0.1)
        cluster["node-1"].check_output("ping -c 1 node-0")
        note("survived")
    """
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "2", "--max-worker-restart=0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: len(notes(pytester)) == 2, Deadline(300), what="both workers to begin")
        assert len(scan.hypervisors(scanned.home)) == 2
        (maker, _), (other, _) = notes(pytester)
        os.kill(int(maker), signal.SIGKILL)
        (pytester.path / "maker-is-dead").touch()
        output, _ = run.communicate(timeout=300)
    finally:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGTERM)
            run.communicate(timeout=180)
    assert [other, "survived"] in notes(pytester), output
    assert [maker, "survived"] not in notes(pytester)
    scanned.nothing_is_left(within_s=GONE_S)


@pytest.mark.any_driver
def test_a_start_that_fails_is_not_tried_by_everybody(pytester, scanned):
    """The other workers are told what the first has found out."""
    pytester.makepyfile(
        CLUSTER.replace("nodes=2,", "nodes=2, init_script='exit 7',")
        + """
    def test_it(cluster): pass
    """
    )
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "each")
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("another worker could not start it") >= 1
    scanned.nothing_is_left(within_s=GONE_S)
