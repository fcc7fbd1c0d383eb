"""The fixtures, as a user's tests see them."""


def test_an_instance_is_connected_and_gone_after_the_test(pytester, run_fake):
    """`vm_instance` is a connected node during the test; afterwards the driver knows no machine."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(image="tiny")
        def test_one(vm_instance, vm_image, vm_server):
            assert vm_instance.check_output("uname -s") == "Linux"
            assert vm_image.name == vm_instance.image.name == "tiny"
            assert [m.name for m in vm_server.machines()] == [vm_instance.instance.name]

        def test_after(vm_server):
            assert vm_server.machines() == []
        """
    )
    run_fake().assert_outcomes(passed=2)


def test_each_test_gets_a_machine_that_nobody_used(pytester, run_fake):
    """What one test writes is not there for the next."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("turn", range(3))
        def test_fresh(vm_instance, turn):
            assert not vm_instance.run("cat /root/mine").ok
            vm_instance.write_text("/root/mine", str(turn))
            assert vm_instance.read_text("/root/mine") == str(turn)
        """
    )
    run_fake().assert_outcomes(passed=3)


def test_a_group_has_roles_and_names(pytester, run_fake):
    """`vm_group` maps node names to nodes, in order, by role, each with its own address."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(nodes={"db": 1, "web": 2})
        def test_cluster(vm_group):
            assert list(vm_group) == ["db-0", "web-0", "web-1"]
            assert [node.name for node in vm_group.role("web")] == ["web-0", "web-1"]
            assert len({node.ip for node in vm_group.values()}) == 3
            assert {r.stdout.strip() for r in vm_group.run("uname -s").values()} == {"Linux"}
            with pytest.raises(KeyError, match="db-0, web-0, web-1"):
                vm_group["nobody"]
            with pytest.raises(KeyError, match="db, web"):
                vm_group.role("nobody")

        @pytest.mark.vm(nodes=2)
        def test_number(vm_group):
            assert list(vm_group) == ["node-0", "node-1"]
        """
    )
    run_fake().assert_outcomes(passed=2)


def test_a_list_of_images_runs_the_test_on_each(pytester, run_fake):
    """Images in the marker become parameters with readable ids; a single one adds none."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(image=["alpha", {"os_family": "debian"}])
        def test_each(vm_instance):
            pass

        @pytest.mark.vm(image="alpha")
        def test_one(vm_instance):
            assert vm_instance.image.name == "alpha"
        """
    )
    result = run_fake("-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines_random(
        [
            "*::test_each[[]alpha[]] PASSED*",
            "*::test_each[[]os_family=debian[]] PASSED*",
            "*::test_one PASSED*",
        ]
    )


def test_the_closest_marker_wins_key_by_key(pytester, run_fake):
    """A test's marker overrides its class's and module's, and inherits what it does not say."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.vm(image="module-image", hardware="small")

        @pytest.mark.vm(hardware="medium")
        class TestClass:
            @pytest.mark.vm(min_ram_mib=3000)
            def test_inner(self, vm_instance):
                info = vm_instance.instance.info
                assert (info.image, info.memory_mib, info.cpus) == ("module-image", 3000, 2)
        """
    )
    run_fake().assert_outcomes(passed=1)


def test_an_init_script_runs_before_the_test_and_its_failure_is_an_error(pytester, run_fake):
    """A failing init script ends in a setup error with its output, not in a failed test."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(init_script="echo trouble >&2; false")
        def test_never_runs(vm_instance):
            assert False
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*did not start*exited with 1*", "*stage: init_script*"])
