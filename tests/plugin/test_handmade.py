"""Machines that a test makes by hand: its report tells of them, and their consoles are watched."""

OOM = "Out of memory: Killed process 7 (db)"


def test_a_failing_test_tells_of_what_it_has_made(pytester, run_fake):
    """Nodes, groups and machines, in the order in which they went; what another test made is left out."""
    pytester.makepyfile(
        """
        def test_passes(vm_server):
            vm_server.launch("other", image="tiny")

        def test_fails(vm_server):
            vm_server.launch("box", image="tiny").run("echo by hand > /dev/ttyS0")
            vm_server.launch_group({"db": 1}, image="tiny")
            vm_server.instance("bare", "tiny").start()
            vm_server.instance("never-on", "tiny")
            assert False
        """
    )
    result = run_fake()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*vmfest: node box (machine box-*",
            "state: running; ssh *",
            "  $ echo by hand > /dev/ttyS0",
            "  | by hand",
            "*vmfest: node db-0 *",
            "*vmfest: node bare (machine bare, image tiny)*",
            "state: running*",
            "  | Fake Linux *",
        ]
    )
    result.stdout.no_fnmatch_line("*vmfest: node never-on *")
    result.stdout.no_fnmatch_line("*vmfest: node other *")


def test_one_that_is_gone_by_then(pytester, run_fake):
    """The usual one, of a ``with`` block: it is told of as it was when it went, and kept as an artifact."""
    pytester.makepyfile(
        """
        def test_fails(vm_server):
            with vm_server.launch(image="tiny") as node, vm_server.instance("bare", "tiny") as machine:
                machine.start()
                assert node.check_output("echo by hand") == "otherwise"
        """
    )
    result = run_fake("--vm-artifacts", "kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*vmfest: node vm *",
            "state: destroyed by the test; it was running",
            "artifacts: *",
            "  $ echo by hand",
            "  | Fake Linux *",
            "*vmfest: node bare *",
            "state: destroyed by the test; it was running",
        ]
    )
    (kept,) = pytester.path.glob("kept/last/*/vm/console.log")
    assert "Fake Linux" in kept.read_text()


def test_one_whose_hypervisor_was_killed(pytester, run_fake):
    """That is an error, also if the test saw something else, and has destroyed the machine since."""
    pytester.makepyfile(
        """
        def test_it(vm_server):
            with vm_server.launch(image="tiny") as node:
                vm_server.driver.abort(node.instance.name)
                assert False
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["state: destroyed by the test; it was aborted", "trouble of the infra*"])


def test_their_consoles_are_watched(pytester, run_fake):
    """A test that would pass fails with the line, unless it expects it; the machine may be gone by then."""
    pytester.makepyfile(
        f"""
        import pytest
        SAY = "echo '{OOM}' > /dev/ttyS0"

        @pytest.mark.parametrize("expects", [False, True])
        def test_node(vm_server, expects):
            with vm_server.launch(image="tiny") as node:
                if expects:
                    node.expect_console("Killed process")
                node.run(SAY)

        @pytest.mark.parametrize("expects", [False, True])
        def test_machine(vm_server, expects):
            with vm_server.instance("bare", "tiny") as machine:
                if expects:
                    machine.expect_console("Killed process")
                machine.start()
                machine.send_keys("{OOM}", "<enter>")

        def test_later(vm_server): pass
        """
    )
    result = run_fake()
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines(
        [f"*the console of vm says: {OOM}*", f"alarm: {OOM}", f"*the console of bare says: {OOM}*"]
    )


def test_a_command_on_one_is_broken_off(pytester, run_fake):
    """Whichever of the test's machines is in trouble."""
    pytester.makepyfile(
        f"""
        import threading

        def test_it(vm_server, vm_instance):
            with vm_server.instance("bare", "tiny") as machine:
                machine.start()
                threading.Timer(0.5, machine.send_keys, ["{OOM}", "<enter>"]).start()
                vm_instance.run("sleep 60")
        """
    )
    result = run_fake()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*ConsoleAlarmError: the console of bare says: {OOM}*"])


def test_one_that_a_wider_fixture_makes(pytester, run_fake):
    """It is the matter of the test during which it was made, and of no later one."""
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture(scope="module")
        def box(vm_server):
            with vm_server.launch("box", image="tiny") as node:
                yield node

        def test_first(box): assert False
        def test_second(box): box.run("echo '{OOM}' > /dev/ttyS0")
        """
    )
    result = run_fake()
    result.assert_outcomes(failed=1, passed=1)
    assert result.stdout.str().count("vmfest: node box") == 1
