"""The images that recipes build, started: what guests offer, and that their disks boot by themselves."""

import contextlib
import json
import socket
import subprocess

import pytest

from pytest_vmfest.waiting import Deadline, wait_for

# Listed by hand, since a guest without one of them would be of little use to tests.
TOOLS = "awk cat find grep head hostname ip ls mount nc ping ps sed sh su tar vi wget"


def test_tiny_is_a_whole_system(box):
    """Tools, users, places to write, names and the way out are as tests expect them."""
    assert box.check_output(f"for tool in {TOOLS}; do which $tool > /dev/null || echo $tool; done") == ""
    assert box.check_output("id -un; id -un nobody; su user -c 'id -un; cd; pwd'").split() == [
        *("root", "nobody", "user", "/home/user"),
    ]
    assert box.check_output("stat -c %a /tmp /root /root/.ssh/authorized_keys").split() == [
        "1777",
        "700",
        "600",
    ]
    assert box.check_output("find / -xdev ! -user root ! -path '/home/user*'") == ""
    assert int(box.check_output("df -m / | awk 'END { print $4 }'")) > 500
    assert box.check_output("ping -c1 localhost > /dev/null && cat /etc/resolv.conf").startswith("nameserver")
    assert box.check_output("ls /dev/pts/ptmx /dev/urandom /proc/1/comm /sys/class/net/eth0/address")


def test_tiny_takes_no_passwords(box):
    """Over SSH root has a key and nothing else, though the console asks for no password."""
    settings = box.check_output("/usr/sbin/sshd -T").splitlines()
    assert {
        "permitrootlogin without-password",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitemptypasswords no",
    } <= set(settings)


@pytest.mark.qemu
def test_tinys_disk_boots_by_itself(vm_server):
    """On hardware as VirtualBox has it, all from firmware to SSH works, and so does the power button."""
    model = vm_server.images.resolve("tiny")
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-cpu", "Nehalem"),
        *("-m", "512", "-accel", "tcg", "-snapshot", "-qmp", "stdio"),
        *("-drive", f"if=none,id=d,format={model.format},file={model.disk}"),
        *("-netdev", "user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "ide-hd,drive=d", "-device", "e1000,netdev=n,romfile="),
    ]
    with Monitor(command) as machine:
        port = int(machine.ask("human-monitor-command", {"command-line": "info usernet"}).split()[-5])
        banner = wait_for(
            lambda: read_banner(port), Deadline(90), what="tiny's SSH server", watch=machine.watch
        )
        assert banner.startswith(b"SSH-2.0-OpenSSH")
        machine.ask("system_powerdown")
        assert machine.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.vm(image="debian-12")
def test_debian_is_a_whole_system(vm_instance):
    """Systemd has started everything, users and their rights are right, apt knows its sources."""
    assert vm_instance.check_output("systemctl is-system-running --wait") == "running"
    assert vm_instance.check_output("su user -c 'sudo id -un'") == "root"
    assert vm_instance.check_output("stat -c %U /usr/bin/passwd /home/user").split() == ["root", "user"]
    assert "/dists/bookworm/InRelease" in vm_instance.check_output("apt-get update --print-uris")
    assert len(vm_instance.check_output("cat /etc/machine-id")) == 32


class Monitor:
    """A QEMU process that is spoken to over its standard streams, and killed at the end."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        self.process.stdout.readline()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()

    def ask(self, command, arguments=None):
        """The answer to a command; events before it are passed over."""
        print(
            json.dumps({"execute": command, "arguments": arguments or {}}),
            file=self.process.stdin,
            flush=True,
        )
        while True:
            answer = json.loads(self.process.stdout.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def watch(self):
        """Fail when the process has ended."""
        assert self.process.poll() is None


def read_banner(port):
    """What the guest's SSH server says first; empty while it does not answer."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        return connection.recv(64)
    return b""
