"""With xdist: which tests go to which worker, and how many workers there are."""

import re
from pathlib import Path

import pytest

MODULE = """
    import pytest
    from pytest_vmfest import instance_fixture

    box = instance_fixture(scope="{scope}"{more})

    class TestBox:
        def test_one(self, box): pass

    def test_other(box): pass
    def test_none(): pass
"""


@pytest.fixture
def groups(pytester, run_fake):
    """What xdist is told: each test's group, by its name; for a fixture of a scope, and what else it says."""

    def collect(scope: str, more: str = "", conftest: str = "") -> dict[str, list[str]]:
        pytester.makepyfile(MODULE.format(scope=scope, more=more))
        pytester.makeconftest(
            f"""
            import pathlib, pytest

            def pytest_collection_finish(session):
                with open("groups", "w") as groups:
                    for item in session.items:
                        found = [mark.args[0] for mark in item.iter_markers("xdist_group")]
                        print(item.name, *found, sep="|", file=groups)
            {conftest}
            """
        )
        run_fake("-n", "1", "--dist", "loadgroup").assert_outcomes(passed=3)
        lines = (pytester.path / "groups").read_text().splitlines()
        return {name: found for name, *found in (line.split("|") for line in lines)}

    return collect


def test_tests_of_one_machine_are_one_group(groups, pytester):
    """Those that use the machine of a session or module go together, those of a class by class."""
    module = Path(pytester.makepyfile("").name).name
    for scope, first, second in [
        ("session", "box", "box"),
        ("module", f"box {module}", f"box {module}"),
        ("class", f"box {module}::TestBox", f"box {module}"),
    ]:
        assert groups(scope) == {"test_one": [first], "test_other": [second], "test_none": []}


@pytest.mark.parametrize(
    ("scope", "more"), [("function", ""), ("session", ", xdist_group=False"), ("session", ", shared=True")]
)
def test_what_is_no_group(groups, scope, more):
    """Tests with machines of their own, those for which it is switched off, and what workers share."""
    assert groups(scope, more) == {"test_one": [], "test_other": [], "test_none": []}


def test_a_group_of_the_user_s_own_counts(groups):
    """A marker that is there is not overruled."""
    found = groups(
        "session",
        conftest="def pytest_itemcollected(item): item.add_marker(pytest.mark.xdist_group('mine'))",
    )
    assert found == {key: ["mine"] for key in ["test_one", "test_other", "test_none"]}


@pytest.mark.parametrize(("hardware", "most"), [("micro", 3), ("small", 1), ("large", 1)])
def test_auto_thinks_of_memory(pytester, run_fake, hardware, most):
    """-n auto starts no more workers than machines have room at once, and at least one."""
    pytester.makeconftest(
        """
        import pytest
        from pytest_vmfest import memory

        memory.limit_mib = lambda: 1700

        def pytest_xdist_auto_num_workers():
            return 8
        """
    )
    pytester.makepyfile("def test_it(): pass")
    result = run_fake("-n", "auto", "--vm-hardware", hardware, "-v")
    result.assert_outcomes(passed=1)
    found = re.search(r"(\d+) workers? \[", result.stdout.str())
    assert found, result.stdout.str()
    assert int(found[1]) == most
