"""What the VirtualBox lane's plugin tells of a run of pytest."""

import json
import os
import subprocess
import sys

import pytest
from ssh_server import needs_sshd

from tests.lane.parcel import PROJECT


@pytest.fixture
def run(pytester, tmp_path):
    """Runs pytest on a module with the plugin; returns its events."""

    def run(source):
        pytester.makepyfile(test_it=source)
        root, kept, told = tmp_path / "root", tmp_path / "kept", tmp_path / "told"
        for folder in (root, kept):
            folder.mkdir()
        with told.open("wb") as stream:
            environment = {
                "LANE_EVENTS_FD": str(stream.fileno()), "LANE_ROOT": str(root), "LANE_KEPT": str(kept),
                "LANE_LOGINS": str(tmp_path / "logins"), "PYTEST_PLUGINS": "tests.lane.logins",
                "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests/unit'}",
            }  # fmt: skip
            subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "tests.lane.guest_plugin", "-p", "no:cacheprovider"],
                env={**os.environ, **environment}, pass_fds=[stream.fileno()], capture_output=True,
            )  # fmt: skip
        return [json.loads(line) for line in told.read_text().splitlines()]

    return run


def test_the_events_of_a_run(run):
    """Collection, each test's beginning and end with its outcome and reason, and pytest's own end."""
    events = run(
        """
        import pytest

        def test_good():
            pass

        def test_bad():
            print("what it said")
            assert 1 == 2

        def test_skipped():
            pytest.skip("for a reason")

        @pytest.fixture
        def breaks_later():
            yield
            raise RuntimeError("late")

        def test_teardown(breaks_later):
            pass

        @pytest.mark.xfail(reason="known", strict=True)
        def test_known():
            assert False
        """
    )
    names = ["good", "bad", "skipped", "teardown", "known"]
    ids = [f"test_it.py::test_{name}" for name in names]
    assert events[0] == {"event": "collected", "ids": ids}
    assert events[-1] == {"event": "finished", "status": 1}
    assert [(e["event"], e["id"]) for e in events[1:-1]] == [
        (x, id_) for id_ in ids for x in ("began", "ended")
    ]
    good, bad, skipped, teardown, known = [event for event in events if event["event"] == "ended"]
    assert (good["outcome"], good["text"], good["marks"]) == ("passed", "", [])
    assert bad["outcome"] == "failed"
    assert bad["marks"] == []
    assert bad["text"].startswith("[call] ")
    assert "assert 1 == 2" in bad["text"]
    assert "what it said" in bad["text"]
    assert (skipped["outcome"], skipped["text"]) == ("skipped", "[call] Skipped: for a reason")
    assert teardown["outcome"] == "failed"
    assert "[teardown]" in teardown["text"]
    assert (known["outcome"], known["text"]) == ("skipped", "[call] known")


def test_marks_outlive_the_machine(run):
    """A log with a guru meditation is found when its machine is gone; a passed test has no marks."""
    events = run(
        """
        import os, shutil
        from pathlib import Path
        import pytest

        @pytest.fixture
        def machine():
            logs = Path(os.environ["LANE_ROOT"], "machines", "m", "Logs")
            logs.mkdir(parents=True)
            (logs / "VBox.log").write_text("Guru Meditation -4001")
            yield
            shutil.rmtree(logs.parent)

        def test_good(machine):
            pass

        def test_bad(machine):
            raise RuntimeError("no answer")

        def test_says_it():
            raise RuntimeError("'m' is in guru meditation")
        """
    )
    good, bad, says_it = [event for event in events if event["event"] == "ended"]
    assert (good["outcome"], good["marks"]) == ("passed", [])
    assert bad["marks"] == says_it["marks"] == ["guru meditation"]
    assert [name.partition("-")[0] for name in bad["tails"]] == ["m"]


@needs_sshd
def test_ssh_sessions_are_told(run, openssh, monkeypatch):
    """With their address, also those of a pytest that a test runs, and only those that came about."""
    settings = openssh.login
    monkeypatch.setenv("SSH_PORT", str(openssh.endpoint.port))
    monkeypatch.setenv("SSH_USER", settings.username)
    monkeypatch.setenv("SSH_KEY", str(settings.private_key))
    events = run(
        """
        import os
        from pathlib import Path
        import pytest
        from pytest_vmfest.errors import AuthenticationError
        from pytest_vmfest.specs import Endpoint, Login
        from pytest_vmfest.ssh import connect
        from pytest_vmfest.waiting import Deadline

        pytest_plugins = ["pytester"]

        def log_in(user):
            endpoint = Endpoint("127.0.0.1", int(os.environ["SSH_PORT"]))
            connect(endpoint, Login(user, private_key=Path(os.environ["SSH_KEY"])), Deadline(30)).close()

        def test_one():
            log_in(os.environ["SSH_USER"])
            with pytest.raises(AuthenticationError):
                log_in("nobody-at-all")

        def test_nested(request, pytester):
            if os.environ.get("NESTED"):
                return
            os.environ["NESTED"] = "yes"
            pytester.makepyfile(Path(__file__).read_text())
            pytester.runpytest_subprocess("-k", "test_one").assert_outcomes(passed=1)

        def test_none():
            pass
        """
    )
    told = [event.get("address") or event["id"].rpartition("_")[2] for event in events[1:-1]]
    assert told == ["one", "127.0.0.1", "one", "nested", "127.0.0.1", "nested", "none", "none"]


def test_what_leaves_itself_out(run):
    """A module that skips itself is told with its reason."""
    events = run("import pytest; pytest.skip('not here', allow_module_level=True)")
    assert {"event": "left_out", "id": "test_it.py", "text": "Skipped: not here"} in events


def test_what_cannot_be_collected(run):
    """A module with a mistake is told with it."""
    events = run("import no_such_module")
    (told,) = [event for event in events if event["event"] == "uncollectable"]
    assert told["id"] == "test_it.py"
    assert "no_such_module" in told["text"]
