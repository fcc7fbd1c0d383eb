"""Fixtures with a scope of their own."""

import pytest


def test_one_machine_for_a_module(pytester, run_fake):
    """A module-scoped instance is the same for all its tests, and another module gets another one."""
    pytester.makeconftest(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module", image="tiny")
        """
    )
    body = """
        def test_write(box):
            assert not box.run("cat /root/mine").ok
            box.write_text("/root/mine", "1")

        def test_read(box):
            assert box.read_text("/root/mine") == "1"
    """
    pytester.makepyfile(test_a=body, test_b=body)
    run_fake().assert_outcomes(passed=4)


def test_reset_makes_it_pristine_before_each_test(pytester, run_fake):
    """With reset=True a test does not see what the test before it did; its node object keeps working."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest import instance_fixture, group_fixture
        box = instance_fixture(scope="module", image="tiny", reset=True)
        cluster = group_fixture(scope="session", nodes=2, reset=True)
        seen = []

        @pytest.mark.parametrize("turn", range(3))
        def test_box(box, turn):
            seen.append(box)
            assert seen[0] is box
            assert not box.run("cat /root/mine").ok
            box.write_text("/root/mine", "1")

        @pytest.mark.parametrize("turn", range(2))
        def test_cluster(cluster, turn):
            for node in cluster.values():
                assert not node.run("cat /root/mine").ok
                node.write_text("/root/mine", "1")
        """
    )
    run_fake().assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scope='session', shared=True, reset=True", "*shared=True and reset=True exclude each other*"),
        ("shared=True", "*shared=True needs a wider scope than one test*"),
    ],
)
def test_what_cannot_be_shared(pytester, run_fake, arguments, message):
    """It is refused with the reason, where the fixture is defined."""
    pytester.makepyfile(
        f"""
        from pytest_vmfest import instance_fixture

        box = instance_fixture({arguments})

        def test_it(box): pass
        """
    )
    run_fake().stdout.fnmatch_lines([message])


def test_shared_without_workers(pytester, run_fake):
    """Then it is a fixture like others."""
    pytester.makepyfile(
        """
        from pytest_vmfest import group_fixture

        cluster = group_fixture(scope="module", nodes=2, shared=True)
        seen = set()

        def test_a(cluster): seen.update(node.instance.name for node in cluster.values())
        def test_b(cluster): assert seen == {node.instance.name for node in cluster.values()}
        def test_c(vm_server): assert len(vm_server.machines()) == 2
        """
    )
    run_fake().assert_outcomes(passed=3)


def test_wrong_arguments_are_refused_where_the_factory_is_called(pytester, run_fake):
    """An unknown argument of a factory fails at collection, with the allowed ones."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module", imagge="tiny")
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*instance_fixture: unknown argument 'imagge'*", "*allowed: image, hardware,*"]
    )


def test_several_images_of_a_factory_are_parameters(pytester, run_fake):
    """A factory's list of images runs its tests on each."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="session", image=["alpha", "beta"])

        def test_it(box):
            assert box.image.name in ("alpha", "beta")
        """
    )
    result = run_fake("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]alpha[]]*", "*test_it[[]beta[]]*"])


def test_default_images_reach_factories_that_name_none(pytester, run_fake):
    """`--vm-image` given twice runs a factory's tests on both."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module")

        def test_it(box):
            assert box.image.name in ("alpha", "beta")
        """
    )
    run_fake("--vm-image", "alpha", "--vm-image", "beta").assert_outcomes(passed=2)


def test_a_marker_around_the_scope_beats_default_images(pytester, run_fake):
    """A factory without an image takes the module's; --vm-image does not then multiply its tests."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_vmfest import instance_fixture
        pytestmark = pytest.mark.vm(image="of-module")
        box = instance_fixture(scope="module")

        def test_it(box):
            assert box.image.name == "of-module"
        """
    )
    run_fake("--vm-image", "alpha", "--vm-image", "beta").assert_outcomes(passed=1)


def test_a_factory_beats_the_command_line(pytester, run_fake):
    """What a factory says wins over options."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module", image="of-factory", hardware="small")

        def test_it(box):
            assert (box.instance.info.image, box.instance.info.memory_mib) == ("of-factory", 1024)
        """
    )
    run_fake("--vm-image", "alpha", "--vm-hardware", "large").assert_outcomes(passed=1)


def test_an_instance_is_one_machine(pytester, run_fake):
    """`nodes` belongs to groups: instance_fixture refuses it instead of ignoring it."""
    pytester.makepyfile(
        """
        from pytest_vmfest import instance_fixture
        box = instance_fixture(scope="module", nodes=3)
        """
    )
    result = run_fake()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*instance_fixture: nodes=3*", "*group_fixture*"])
