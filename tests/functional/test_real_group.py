"""Real machines that belong together."""

import pytest

from pytest_vmfest import group_fixture

cluster = group_fixture(scope="module", image="tiny", nodes={"db": 1, "web": 3})
other = group_fixture(scope="module", image="tiny", nodes=2)


def test_every_node_reaches_every_other_by_name(cluster):
    """In a group of four with roles, all names resolve and answer; each node has its own name."""
    assert list(cluster) == ["db-0", "web-0", "web-1", "web-2"]
    for node in cluster.values():
        assert node.check_output("hostname") == node.name
        for name in cluster:
            node.check_output(f"ping -c 1 -w 20 {name}")


def test_two_groups_never_meet(cluster, other):
    """With the same addresses in use in both, each group sees only its own nodes."""
    names = "cat /proc/sys/kernel/hostname"
    for group in (cluster, other):
        for node in group.values():
            node.check_output(f"mkdir -p /tmp/www && {names} > /tmp/www/name && httpd -p 8000 -h /tmp/www")
    seen = {
        node.check_output(f"wget -q -O - http://{name}:8000/name")
        for node in other.values()
        for name in other
    }
    assert seen == {"node-0", "node-1"}
    outsider = cluster["web-2"].ip
    assert outsider not in {node.ip for node in other.values()}
    assert not other["node-0"].run(f"ping -c 1 -w 3 {outsider}").ok
    assert cluster["db-0"].run(f"ping -c 1 -w 20 {outsider}").ok


def test_all_at_once(cluster):
    """Run on a group answers for every node."""
    results = cluster.run("hostname")
    assert {name: result.stdout.strip() for name, result in results.items()} == {n: n for n in cluster}


def test_a_node_that_reboots_is_part_of_its_group_again(cluster):
    """Address and names are there again after a reboot."""
    cluster["web-0"].reboot()
    cluster["web-0"].check_output("ping -c 1 -w 20 db-0")
    cluster["db-0"].check_output("ping -c 1 -w 20 web-0")


@pytest.mark.vm(image="tiny", nodes=2)
def test_groups_are_reset_as_a_whole(vm_group):
    """Snapshots of all nodes go back together, and the nodes still reach each other."""
    vm_group.each(lambda node: node.snapshot("start"))
    vm_group.each(lambda node: node.write_text("/root/x", "1"))
    vm_group.each(lambda node: node.revert("start"))
    assert not any(result.ok for result in vm_group.run("test -e /root/x").values())
    vm_group["node-0"].check_output("ping -c 1 -w 20 node-1")
