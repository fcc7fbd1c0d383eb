"""One real machine: commands, files, keys, power and snapshots."""

import hashlib
import os
import socket
import subprocess
import time

import pytest

from pytest_vmfest import CommandError, CommandTimeoutError, MachineState, WaitTimeoutError
from pytest_vmfest.waiting import Deadline, wait_for

MIB = 1 << 20


def test_results_tell_status_and_both_streams(box):
    """Run never raises on a status; check_output does, with both streams in the error."""
    result = box.run("echo out; echo err >&2; exit 3")
    assert (result.exit_status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    with pytest.raises(CommandError, match="exited with 3") as caught:
        box.check_output("echo out; echo err >&2; exit 3")
    assert "out" in str(caught.value)
    assert "err" in str(caught.value)
    assert box.check_output(["printf", "%s", "a  b"]) == "a  b"


def test_ten_mib_on_both_streams_at_once(box):
    """Neither stream blocks the other, and not a byte is lost."""
    result = box.run(
        f"head -c {10 * MIB} /dev/zero | tr '\\0' o & head -c {10 * MIB} /dev/zero | tr '\\0' e >&2; wait",
        timeout_s=300,
    )
    assert result.exit_status == 0
    assert result.stdout_bytes == b"o" * (10 * MIB)
    assert result.stderr_bytes == b"e" * (10 * MIB)


def test_input_of_any_bytes_comes_back(box):
    """Standard input is passed on byte for byte and then closed."""
    data = os.urandom(MIB)
    assert box.run("cat", input=data).stdout_bytes == data
    assert box.run("cat").stdout == ""


def test_environment_directory_and_user(box):
    """The command gets its variables, its directory and its user."""
    assert box.check_output("pwd; echo $WORD", cwd="/tmp", env={"WORD": "a 'b'"}) == "/tmp\na 'b'"
    assert box.check_output("id -un", user="nobody") == "nobody"
    assert box.check_output("id -un") == box.user == "root"


def test_a_timeout_ends_the_call_and_the_connection_goes_on(box):
    """A command that takes too long raises in time, with its output until then."""
    began = time.monotonic()
    with pytest.raises(CommandTimeoutError, match="did not end within 2 s") as caught:
        box.run("echo early; sleep 60", timeout_s=2)
    assert time.monotonic() - began < 10
    assert caught.value.stdout == "early\n"
    assert box.check_output("echo still here") == "still here"


def test_waiting_for_a_command(box):
    """wait_until returns when the command succeeds, and tells its last word when it never does."""
    box.run("rm -f /tmp/flag; (sleep 1; touch /tmp/flag) >/dev/null 2>&1 &")
    assert box.wait_until("test -e /tmp/flag", timeout_s=60).ok
    with pytest.raises(WaitTimeoutError, match="exited with 7"):
        box.wait_until("exit 7", timeout_s=1)


def test_files_and_folders_there_and_back(box, tmp_path):
    """A tree with binary content, odd names and modes is the same after a round trip."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "it's a name").write_bytes(os.urandom(3 * MIB))
    (tree / "script").write_text("#!/bin/sh\necho ran\n")
    (tree / "script").chmod(0o750)
    box.put(tree, "/root/tree")
    assert box.check_output("/root/tree/script") == "ran"
    digest = hashlib.sha256((tree / "sub" / "it's a name").read_bytes()).hexdigest()
    assert box.check_output(["sha256sum", "/root/tree/sub/it's a name"]).split()[0] == digest
    box.get("/root/tree", tmp_path / "back")
    there = {p.relative_to(tree): p.stat().st_mode for p in tree.rglob("*")}
    back = {p.relative_to(tmp_path / "back"): p.stat().st_mode for p in (tmp_path / "back").rglob("*")}
    assert back == there
    assert (tmp_path / "back/sub/it's a name").read_bytes() == (tree / "sub" / "it's a name").read_bytes()


def test_text_files(box):
    """write_text and read_text keep every character."""
    box.write_text("/tmp/text", "ünï\n\tlast")
    assert box.read_text("/tmp/text") == "ünï\n\tlast"


def test_a_forwarded_port_leads_into_the_guest(box):
    """Forward tells a way to a server in the guest; asked twice, it is the same one."""
    box.check_output("mkdir -p /tmp/www && echo hello > /tmp/www/index.html && httpd -p 8081 -h /tmp/www")
    host, port = box.forward(8081)
    assert box.forward(8081) == (host, port)
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(b"hello\n")


def test_the_ssh_command_works_as_pasted(box):
    """The line that is printed for people logs in, with the host key verified."""
    done = subprocess.run(
        f"{box.ssh_command} hostname", shell=True, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == box.name, done.stderr
    assert "StrictHostKeyChecking=yes" in box.ssh_command


def test_it_has_a_way_out(box):
    """Behind NAT, the guest has an address and a default route."""
    assert "default via" in box.check_output("ip route")


def test_keys_reach_the_guest_and_the_screen_can_be_seen(box, tmp_path):
    """What is typed on the keyboard arrives on the first terminal; a screenshot is a PNG."""
    box.screenshot(tmp_path / "screen.png")
    assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    box.check_output("rm -f /tmp/typed; (head -n 1 < /dev/tty9 > /tmp/typed) >/dev/null 2>&1 & chvt 9")
    box.send_keys("Typed: A-z!", "<enter>")
    box.wait_until("grep -qx 'Typed: A-z!' /tmp/typed")


def test_the_console_is_live(box):
    """What the guest writes to its serial port shows up in the console's text."""
    box.check_output("echo from inside > /dev/ttyS0")
    wait_for(lambda: "from inside" in box.console(), Deadline(20), what="the console's text")


def test_pause_and_resume(box):
    """A paused machine says so and answers again after resume."""
    box.pause()
    assert box.instance.state is MachineState.PAUSED
    box.resume()
    assert box.check_output("echo back") == "back"


def test_snapshot_and_revert_bring_back_disk_memory_and_processes(box):
    """After a revert, files, memory and processes are those of the snapshot, and the clock is right."""
    box.check_output("date -u -s @$(($(date +%s) - 3600))")
    box.check_output(
        "echo before > /root/state; echo before > /dev/shm/state 2>/dev/null || echo before > /tmp/state"
    )
    box.check_output("sleep 100000 >/dev/null 2>&1 & echo $! > /tmp/pid")
    box.snapshot("here")
    box.check_output("echo after > /root/state; kill $(cat /tmp/pid); rm /tmp/pid")
    box.revert("here")
    assert box.read_text("/root/state") == "before\n"
    box.check_output("kill -0 $(cat /tmp/pid)")
    assert abs(int(box.check_output("date +%s")) - time.time()) < 10
    box.instance.delete_snapshot("here")
    assert box.instance.snapshots() == []


def test_reboot_brings_back_the_same_node(box):
    """After a reboot it is the same node with its files and name, but another boot."""
    box.check_output("echo kept > /root/kept && sync")
    before = box.check_output("cat /proc/sys/kernel/random/boot_id")
    box.reboot()
    assert box.check_output("cat /proc/sys/kernel/random/boot_id") != before
    assert box.read_text("/root/kept") == "kept\n"
    assert box.check_output("hostname") == box.name


def test_saved_state_goes_on_where_it_was(box):
    """save_state powers off and keeps memory; start goes on with the same processes."""
    box.check_output("sleep 100000 >/dev/null 2>&1 & echo $! > /tmp/pid")
    box.instance.save_state()
    assert box.instance.state is MachineState.SAVED
    box.instance.start()
    box.check_output("kill -0 $(cat /tmp/pid)")


def test_stop_asks_the_guest_and_start_boots_it_again(box):
    """The power button shuts the guest down in order; its disk is kept."""
    box.check_output("echo kept > /root/after-stop")
    box.instance.stop()
    assert box.instance.state is MachineState.POWERED_OFF
    box.instance.start()
    assert box.read_text("/root/after-stop") == "kept\n"
