"""VirtualBox as users have it: through the marker, the options and `Server`, and nothing else."""

import hashlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from registry import registered

from pytest_vmfest import HardwareModel, MachineState, Server

SMALL = HardwareModel("clone", memory_mib=128, cpus=1)
NAMES = ["c1", "c2", "c3", "c4", "c5", "c6"]

pytestmark = pytest.mark.usefixtures("running")


def digest(path):
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("tiny_home")
def test_a_marked_test_gets_a_node_on_the_host_only_network(pytester, connection):
    """The first example of the README, with nothing but the driver named on the command line."""
    before = registered(connection)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm(image="tiny")
        def test_one(vm_instance):
            assert vm_instance.check_output("uname -s") == "Linux"
            assert vm_instance.ip.startswith("192.168.56.")
            assert vm_instance.port == 22
            assert "default via" in vm_instance.check_output("ip route")
            print("SSH session over vboxnet0 to", vm_instance.ip)
        """
    )
    result = pytester.runpytest_subprocess("--vm-driver", "virtualbox", "-rP")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*vmfest: VirtualBox 7.*", "*SSH session over vboxnet0 to 192.168.56.*"])
    assert registered(connection) == before


def test_the_story_of_one_machine(tiny_home, connection):
    """Add a model; instance, start, pause, resume, power down, destroy."""
    before = registered(connection)
    with Server("virtualbox", home=tiny_home) as server:
        model = server.image("tiny")
        unchanged = digest(model.disk)
        machine = server.instance("my-machine", "tiny", SMALL)
        assert machine.state is MachineState.POWERED_OFF
        machine.start()
        machine.pause()
        assert machine.state is MachineState.PAUSED
        machine.resume()
        assert [found.name for found in server.machines()] == ["my-machine"]
        machine.power_down()
        assert machine.state is MachineState.POWERED_OFF
        machine.destroy()
        assert server.machines() == []
        assert digest(model.disk) == unchanged
    assert registered(connection) == before


def test_a_model_is_added_from_a_file_of_virtualbox(tiny_home, tmp_path, connection):
    """A VDI from elsewhere becomes a model, and instances of it boot; the file itself is left alone."""
    with Server("virtualbox", home=tiny_home) as server:
        source = tmp_path / "from-elsewhere.vdi"
        tiny = server.image("tiny")
        subprocess.run(["qemu-img", "convert", "-O", "vdi", str(tiny.disk), str(source)], check=True)
        unchanged = digest(source)
        model = server.images.add(source, metadata={"private_key": str(tiny.login.private_key)})
        assert model.name == "from-elsewhere"
        with server.launch("box", image="from-elsewhere", hardware=SMALL) as box:
            assert box.check_output("hostname") == "box"
        server.images.verify("from-elsewhere")
        assert digest(source) == unchanged
    assert not [medium for medium in registered(connection)["media"] if str(tiny_home) in medium]


def test_six_clones_at_once(tiny_home, connection):
    """Find some names, create the instances, start them all, stop them all, remove them all."""
    before = registered(connection)
    with Server("virtualbox", home=tiny_home) as server, ThreadPoolExecutor(6) as pool:
        machines = list(pool.map(lambda name: server.instance(name, "tiny", SMALL), NAMES))
        list(pool.map(lambda machine: machine.start(), machines))
        assert {machine.state for machine in machines} == {MachineState.RUNNING}
        list(pool.map(lambda machine: machine.power_down(), machines))
        list(pool.map(lambda machine: machine.destroy(), machines))
        assert server.machines() == []
    assert registered(connection) == before


def test_three_nodes_at_once(tiny_home, connection):
    """Three nodes with addresses of their own reach each other by name, and leave nothing."""
    before = registered(connection)
    with Server("virtualbox", home=tiny_home) as server:
        with server.launch_group(3, image="tiny", hardware=SMALL) as group:
            assert len({node.ip for node in group.values()}) == 3
            for node in group.values():
                for name in group:
                    node.check_output(f"ping -c 1 -w 20 {name}")
                print("SSH session over vboxnet0 to", node.ip)
        assert server.machines() == []
    assert registered(connection) == before


@pytest.fixture(scope="module")
def one_server(running, new_home, connection):
    """A server for several tests; after the last of them, lists and model are as before the first."""
    before = registered(connection)
    with Server("virtualbox", home=new_home()) as server:
        model = server.image("tiny")
        unchanged = digest(model.disk)
        yield server
        assert server.machines() == []
        assert digest(model.disk) == unchanged
    assert registered(connection) == before


@pytest.mark.parametrize("turn", range(10))
def test_ten_machines_one_after_the_other(one_server, turn):
    """Each is one that nobody used before."""
    began = time.monotonic()
    with one_server.launch("box", image="tiny", hardware=SMALL) as box:
        assert not box.run("test -e /root/used").ok
        box.write_text("/root/used", "")
        print(f"{turn}: SSH over vboxnet0 to {box.ip} {time.monotonic() - began:.1f} s after the request")
