"""Beside other plugins: the real ones."""

import html
import json
import os
import re
from xml.etree import ElementTree

import pytest

ALONE_AND_WITH_A_WORKER = pytest.mark.parametrize(
    "workers", [pytest.param([], id="alone"), pytest.param(["-n", "1"], id="xdist")]
)
TWO_WORKERS = pytest.mark.skipif(os.cpu_count() == 1, reason="two workers on one CPU")
RERUNS = ("--reruns", "1")
RANDOMLY = ("-p", "randomly")
ASYNCIO = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
HTML = ("--html", "report.html", "--self-contained-html")
NOTES = """
    import pathlib, pytest
    from pytest_vmfest import instance_fixture

    def note(node):
        with open("used", "a") as used:
            print(node.instance.name, file=used)
        return pathlib.Path("used").read_text().split()
"""


@pytest.fixture(autouse=True)
def _beside_them(pytester, monkeypatch):
    """Load them as a user's pytest does; only a shuffled order has to be asked for."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")


@pytest.fixture
def used(pytester):
    """The machines that the inner tests have noted, one for each time."""
    return lambda: (pytester.path / "used").read_text().split()


class TestReruns:
    """pytest-rerunfailures."""

    @ALONE_AND_WITH_A_WORKER
    def test_a_rerun_has_a_fresh_machine(self, pytester, run_fake, used, workers):
        """Nothing that the first try has written is there, and its machine is gone."""
        pytester.makepyfile(
            NOTES
            + """
    def test_flaky(vm_instance, vm_server):
        assert [machine.name for machine in vm_server.machines()] == [vm_instance.instance.name]
        assert not vm_instance.run("test -e /root/used").ok
        vm_instance.write_text("/root/used", "")
        assert len(note(vm_instance)) == 2

    @pytest.mark.vm(nodes=2)
    def test_flaky_group(vm_group, vm_server):
        assert len(vm_server.machines()) == 2
        for node in vm_group.values():
            tries = note(node)
        assert len(tries) == 6
"""
        )
        result = run_fake(*RERUNS, *workers)
        assert result.parseoutcomes() == {"passed": 2, "rerun": 2}
        assert len(set(used())) == 6

    @ALONE_AND_WITH_A_WORKER
    @pytest.mark.parametrize("scope", ["class", "module", "session"])
    def test_a_machine_of_a_wider_scope_is_pristine_again(self, pytester, run_fake, used, workers, scope):
        """With reset=True it is the same one, without what the first try did to it."""
        pytester.makepyfile(
            NOTES
            + f"""
    box = instance_fixture(scope={scope!r}, reset=True)

    class TestBox:
        def test_before(self, box): box.write_text("/root/used", "")

        def test_flaky(self, box):
            assert not box.run("test -e /root/used").ok
            box.write_text("/root/used", "")
            assert len(note(box)) == 2

        def test_after(self, box): assert not box.run("test -e /root/used").ok
"""
        )
        result = run_fake(*RERUNS, *workers)
        assert result.parseoutcomes() == {"passed": 3, "rerun": 1}
        assert len(set(used())) == 1

    def test_what_did_not_start_is_made_anew(self, pytester, run_fake):
        """A machine of a wider scope that did not come up in the first try."""
        pytester.makepyfile(
            """
            import pytest
            from pytest_vmfest import instance_fixture
            from pytest_vmfest.drivers.fake import FakeFault

            box = instance_fixture(scope="module")

            @pytest.fixture(scope="module")
            def faulty(vm_server):
                vm_server.driver.inject(FakeFault.START_FAILS, times=1)

            def test_one(faulty, box): box.check_output("true")
            def test_other(box): box.check_output("true")
            """
        )
        result = run_fake(*RERUNS, "--vm-boot-retries", "0")
        assert result.parseoutcomes() == {"passed": 2, "rerun": 1}

    def test_an_alarm_is_that_try_s_own(self, pytester, run_fake):
        """What the console said in the first try does not fail the second."""
        pytester.makepyfile(
            """
            from pytest_vmfest import instance_fixture

            box = instance_fixture(scope="module")
            turns = []

            def test_it(box):
                turns.append("turn")
                if len(turns) == 1:
                    box.run("echo Kernel panic - not syncing > /dev/ttyS0")
            """
        )
        assert run_fake(*RERUNS).parseoutcomes() == {"passed": 1, "rerun": 1}

    @ALONE_AND_WITH_A_WORKER
    def test_every_try_leaves_its_artifacts(self, pytester, run_fake, used, workers):
        """A folder for each try with that try's machine; the report of the last one names the last."""
        pytester.makepyfile(
            test_it=NOTES
            + """
    def test_fails(vm_instance):
        vm_instance.run(f"echo turn {len(note(vm_instance))} > /dev/ttyS0")
        assert False
"""
        )
        result = run_fake(*RERUNS, *workers, "--vm-artifacts", "kept")
        assert result.parseoutcomes() == {"failed": 1, "rerun": 1}
        last = pytester.path / "kept" / "last"
        folders = [last / f"test_it.py-test_fails{number}" / "vm" for number in ("", "-2")]
        infos = [json.loads((folder / "info.json").read_text()) for folder in folders]
        assert [info["machine"] for info in infos] == used()
        consoles = [(folder / "console.log").read_text() for folder in folders]
        assert [re.findall(r"turn \d", console) for console in consoles] == [["turn 1"], ["turn 2"]]
        assert re.findall(r"artifacts: (.*)", result.stdout.str()) == [str(folders[1].resolve())]
        assert result.stdout.str().count("vmfest: node vm") == 1

    def test_the_tries_that_are_not_the_last_tell_of_their_machines(self, pytester, run_fake, used):
        """Where the plugin shows them: with --rerun-show-tracebacks."""
        pytester.makepyfile(
            NOTES
            + """
    def test_flaky(vm_instance):
        assert len(note(vm_instance)) == 2
"""
        )
        result = run_fake(*RERUNS, "--rerun-show-tracebacks")
        assert result.parseoutcomes() == {"passed": 1, "rerun": 1}
        assert result.stdout.str().count(f"vmfest: node vm (machine {used()[0]}, image tiny)") == 1

    @ALONE_AND_WITH_A_WORKER
    def test_each_try_has_its_times(self, pytester, run_fake, workers):
        """In JUnit's XML, and as machines of their own in the timeline."""
        pytester.makepyfile(NOTES + "    def test_flaky(vm_instance): assert len(note(vm_instance)) == 2")
        run_fake(*RERUNS, *workers, "--junitxml", "junit.xml", "--vm-timeline", "line.html")
        cases = list(ElementTree.parse(pytester.path / "junit.xml").iter("testcase"))
        assert len(cases) == 2
        for case in cases:
            names = [one.get("name") for one in case.iter("property")]
            assert sorted(names) == sorted(set(names))
            assert {"vmfest.vm.boot", "vmfest.test", "vmfest.vm.teardown"} <= set(names)
        assert (pytester.path / "line.html").read_text().count("boot: ") == 2

    @ALONE_AND_WITH_A_WORKER
    @pytest.mark.parametrize("failing", [1, 2])
    def test_a_failed_try_s_machine_is_kept(self, pytester, run_fake, used, workers, failing):
        """With --vm-keep failed each such machine stays and is told; the one of the try that passed goes."""
        pytester.makepyfile(
            NOTES
            + f"""
    def test_flaky(vm_instance):
        assert len(note(vm_instance)) > {failing}

    def test_after(vm_server):
        tries = pathlib.Path("used").read_text().split()
        assert [machine.name for machine in vm_server.machines()] == tries[:{failing}]
"""
        )
        result = run_fake(*RERUNS, *workers, "--vm-keep", "failed")
        assert result.parseoutcomes()["passed"] == 3 - failing
        kept = re.findall(r"^(\S+)  \(of .*::test_flaky, until", result.stdout.str(), re.MULTILINE)
        assert kept == used()[:failing]


class TestRandomly:
    """pytest-randomly."""

    SUITE = (
        NOTES
        + """
    box = instance_fixture(scope="module", reset=True)
    shelf = instance_fixture(scope="class", reset=True)

    def use(node):
        assert not node.run("test -e /root/used").ok
        node.write_text("/root/used", "")

    @pytest.mark.parametrize("turn", range(4))
    def test_of_its_own(vm_instance, turn):
        note(vm_instance)
        use(vm_instance)

    @pytest.mark.parametrize("turn", range(4))
    def test_of_the_module(box, turn): use(box)

    class TestShelf:
        @pytest.mark.parametrize("turn", range(4))
        def test_of_the_class(self, shelf, box, turn):
            use(shelf)
            use(box)

    @pytest.mark.vm(image=["tiny", {"os_family": "linux"}])
    def test_images(vm_image): pass
"""
    )

    @pytest.mark.parametrize("seed", [1, 2])
    def test_in_any_order(self, pytester, run_fake, seed):
        """Machines of all scopes are as they have to be, and tests on several images have readable ids."""
        pytester.makepyfile(test_a=self.SUITE, test_b=self.SUITE)
        result = run_fake(*RANDOMLY, f"--randomly-seed={seed}", "-v")
        result.assert_outcomes(passed=28)
        ran = re.findall(r"^(test_\S+) PASSED", result.stdout.str(), re.MULTILINE)
        in_order = [line for line in run_fake("--collect-only", "-q").outlines if "::" in line]
        assert sorted(ran) == sorted(in_order)
        assert ran != in_order
        ids = {name.partition("test_images")[2] for name in ran if "test_images" in name}
        assert ids == {"[tiny]", "[os_family=linux]"}

    @TWO_WORKERS
    def test_workers_with_one_seed_make_machines_of_their_own(self, pytester, run_fake, used):
        """The seed is set anew for each test; names of machines are not made from it."""
        pytester.makepyfile(test_a=self.SUITE, test_b=self.SUITE)
        result = run_fake(*RANDOMLY, "--randomly-seed=1", "-n", "2", *RERUNS)
        result.assert_outcomes(passed=28)
        assert len(used()) == len(set(used())) == 8


class TestTimeout:
    """pytest-timeout."""

    AFTER = """
    def test_after(vm_instance, vm_server):
        assert [machine.name for machine in vm_server.machines()] == [vm_instance.instance.name]
        vm_instance.check_output("true")
"""

    @ALONE_AND_WITH_A_WORKER
    def test_in_a_test(self, pytester, run_fake, workers):
        """The test fails and tells what ran, its machine is destroyed, and the next test has its own."""
        pytester.makepyfile(
            """
    import pytest

    @pytest.mark.timeout(0.5, method="signal")
    def test_hangs(vm_instance):
        vm_instance.run("sleep 100")
"""
            + self.AFTER
        )
        result = run_fake(*workers)
        result.assert_outcomes(failed=1, passed=1)
        result.stdout.fnmatch_lines(
            ["*Timeout*", "*vmfest: node vm *", "  $ sleep 100", "*broken off: Failed*"]
        )

    def test_a_machine_of_a_wider_scope_is_usable_afterwards(self, pytester, run_fake):
        """The command that was broken off does not stand in the next test's way."""
        pytester.makepyfile(
            """
            import pytest
            from pytest_vmfest import instance_fixture

            box = instance_fixture(scope="module", reset=True)

            @pytest.mark.timeout(0.5, method="signal")
            def test_hangs(box):
                box.write_text("/root/used", "")
                box.run("sleep 100")

            def test_after(box): assert not box.run("test -e /root/used").ok
            """
        )
        run_fake().assert_outcomes(failed=1, passed=1)

    @pytest.mark.parametrize("nodes", [1, 2])
    def test_while_machines_start(self, pytester, run_fake, nodes):
        """It is an error of the setup, and nothing of them is left."""
        pytester.makepyfile(
            f"""
    import pytest
    from pytest_vmfest.drivers.fake import FakeFault

    @pytest.fixture
    def faulty(vm_server):
        vm_server.driver.inject(FakeFault.UNREACHABLE)
        yield
        vm_server.driver.heal()

    @pytest.mark.vm(nodes={nodes})
    @pytest.mark.timeout(0.5, method="signal")
    def test_hangs(faulty, vm_group): pass
"""
            + self.AFTER
        )
        result = run_fake()
        result.assert_outcomes(errors=1, passed=1)
        result.stdout.fnmatch_lines(["*Timeout*"])

    def test_while_a_machine_is_destroyed(self, pytester, run_fake):
        """It is destroyed first."""
        pytester.makeconftest(
            """
            import time
            from pytest_vmfest.drivers.fake import FakeDriver

            destroy = FakeDriver.destroy

            def slowly(self, name):
                time.sleep(1)
                destroy(self, name)

            FakeDriver.destroy = slowly
            """
        )
        pytester.makepyfile(
            """
    import pytest

    @pytest.mark.timeout(0.5, method="signal")
    def test_hangs(vm_instance): pass
"""
            + self.AFTER
        )
        result = run_fake()
        result.assert_outcomes(errors=1, passed=2)
        result.stdout.fnmatch_lines(["*Timeout*"])

    def test_by_a_thread_under_xdist(self, pytester, run_fake):
        """The worker is ended with its test, and the one that replaces it works."""
        pytester.makepyfile(
            """
    import pytest

    @pytest.mark.timeout(1, method="thread")
    def test_hangs(vm_instance):
        vm_instance.run("sleep 100")
"""
            + self.AFTER
        )
        result = run_fake("-n", "1")
        result.assert_outcomes(failed=1, passed=1)
        result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running '*test_hangs'*"])


class TestAsyncio:
    """pytest-asyncio."""

    SUITE = """
    import asyncio, pytest, pytest_asyncio

    @pytest_asyncio.fixture
    async def prepared(vm_instance):
        await asyncio.to_thread(vm_instance.write_text, "/root/prepared", "yes")
        yield vm_instance
        await asyncio.to_thread(vm_instance.check_output, "test -e /root/used")

    async def test_several_at_once(vm_instance):
        commands = [f"sleep 0.2; echo {number}" for number in range(4)]
        running = [asyncio.to_thread(vm_instance.check_output, command) for command in commands]
        assert await asyncio.gather(*running) == ["0", "1", "2", "3"]

    async def test_fixture(prepared):
        assert await asyncio.to_thread(prepared.read_text, "/root/prepared") == "yes"
        await asyncio.to_thread(prepared.run, "touch /root/used")

    @pytest.mark.vm(nodes=2)
    async def test_group(vm_group):
        running = [asyncio.to_thread(node.check_output, "hostname") for node in vm_group.values()]
        assert await asyncio.gather(*running) == ["node-0", "node-1"]

    def test_sync(vm_instance): vm_instance.check_output("true")
"""

    @ALONE_AND_WITH_A_WORKER
    def test_async_tests_and_fixtures(self, pytester, run_fake, workers):
        """They use nodes in threads, several commands at once; tests that are not async stand beside them."""
        pytester.makepyfile(self.SUITE)
        run_fake(*ASYNCIO, *workers, "-W", "error").assert_outcomes(passed=4)

    def test_a_failing_one_tells_of_its_machine(self, pytester, run_fake):
        """As any other; and what breaks off a command in a thread reaches the test."""
        pytester.makepyfile(
            """
            import asyncio

            async def test_fails(vm_instance):
                await asyncio.to_thread(vm_instance.check_output, "echo from a thread; false")

            async def test_alarm(vm_instance):
                panic = "echo Kernel panic - not syncing > /dev/ttyS0; sleep 100"
                await asyncio.gather(asyncio.to_thread(vm_instance.run, panic))
            """
        )
        result = run_fake(*ASYNCIO)
        result.assert_outcomes(failed=2)
        result.stdout.fnmatch_lines(
            ["*CommandError*", "*vmfest: node vm *", "  $ echo from a thread; false", "*vmfest: node vm *"]
        )
        result.stdout.fnmatch_lines(["*ConsoleAlarmError*Kernel panic*"])


class TestHtml:
    """pytest-html."""

    SUITE = """
    import pytest

    NASTY = "</script><script>alert('&')</script>"

    @pytest.fixture
    def broken(vm_instance):
        vm_instance.run("echo in broken > /dev/ttyS0")
        raise ValueError

    @pytest.fixture
    def untidy(vm_instance):
        yield
        vm_instance.run("echo in untidy > /dev/ttyS0")
        raise ValueError

    def test_call(vm_instance):
        vm_instance.run("cat > /dev/ttyS0", input=NASTY.encode())
        vm_instance.run(f"echo {NASTY!r}")
        assert False

    def test_setup(broken): pass
    def test_teardown(untidy): pass
    def test_passes(vm_instance): pass
"""

    @staticmethod
    def logs(pytester):
        """The report's logs by test and outcome, as a browser shows them."""
        page = (pytester.path / "report.html").read_text(encoding="utf-8")
        (blob,) = re.findall(r'data-jsonblob="([^"]*)"', page)
        return {
            f"{name} {run['result']}": html.unescape(run["log"])
            for name, runs in json.loads(html.unescape(blob))["tests"].items()
            for run in runs
        }

    @ALONE_AND_WITH_A_WORKER
    def test_the_report_tells_of_machines_once(self, pytester, run_fake, workers):
        """What failed in setup, test or teardown has its machine's section; what passed has none."""
        pytester.makepyfile(test_it=self.SUITE)
        run_fake(*HTML, *workers).assert_outcomes(failed=1, errors=2, passed=2)
        logs = self.logs(pytester)
        told = {name: log.count("vmfest: node vm (machine vm-") for name, log in logs.items()}
        assert told == {
            "test_it.py::test_call Failed": 1,
            "test_it.py::test_setup Error": 1,
            "test_it.py::test_teardown Passed": 0,
            "test_it.py::test_teardown Error": 1,
            "test_it.py::test_passes Passed": 0,
        }
        assert "  | in broken" in logs["test_it.py::test_setup Error"]
        assert "  | in untidy" in logs["test_it.py::test_teardown Error"]

    def test_it_is_one_file_and_guests_write_no_html(self, pytester, run_fake):
        """What commands and consoles say is text there."""
        pytester.makepyfile(test_it=self.SUITE)
        run_fake(*HTML)
        page = (pytester.path / "report.html").read_text(encoding="utf-8")
        assert "<script>alert" not in html.unescape(page).replace(html.escape("<script>alert"), "")
        log = self.logs(pytester)["test_it.py::test_call Failed"]
        assert "  | </script><script>alert('&')</script>" in log
        assert not (pytester.path / "assets").exists()
        assert not re.search(r'(?:src|href)="https?:[^"]*\.(?:js|css)', page)

    @ALONE_AND_WITH_A_WORKER
    def test_a_try_that_is_not_the_last_is_told(self, pytester, run_fake, used, workers):
        """With pytest-rerunfailures its entry has its machine's section."""
        pytester.makepyfile(
            test_it=NOTES
            + """
    def test_flaky(vm_instance):
        assert len(note(vm_instance)) == 2
"""
        )
        run_fake(*HTML, *RERUNS, *workers)
        logs = self.logs(pytester)
        assert logs["test_it.py::test_flaky Rerun"].count(f"vmfest: node vm (machine {used()[0]}") == 1
