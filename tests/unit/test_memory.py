"""How much memory machines may have: that of the host, or of the control group that we are in."""

import psutil
import pytest

from pytest_vmfest.memory import limit_mib

GIB = 1 << 30


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with 8 GiB, whose control groups the tests make up."""

    class Memory:
        total = 8 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)

    def make(cgroup: str, limits: dict[str, str]) -> int:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        for name, text in limits.items():
            path = tmp_path / "cgroups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return limit_mib(tmp_path / "proc", tmp_path / "cgroups")

    return make


def test_a_host_without_limits(host):
    """Nine tenths of its memory."""
    assert host("0::/\n", {}) == 8192 * 9 // 10


def test_the_tightest_group_counts(host):
    """Of version 2: our own group's limit, or one above; "max" is none."""
    limits = {"a/memory.max": f"{2 * GIB}\n", "a/b/memory.max": "max\n", "memory.max": f"{4 * GIB}\n"}
    assert host("0::/a/b\n", limits) == 2048 * 9 // 10


def test_groups_of_version_1(host):
    """The memory controller's own hierarchy, and no other's."""
    limits = {"memory/x/memory.limit_in_bytes": str(GIB), "cpu/x/memory.limit_in_bytes": "1"}
    assert host("5:cpu:/x\n7:memory:/x\n", limits) == 1024 * 9 // 10


def test_without_control_groups(tmp_path):
    """Where there are none to be read, the host's memory counts."""
    assert limit_mib(tmp_path, tmp_path) > 0
