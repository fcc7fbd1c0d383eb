"""The fake driver: its guests' shell and files, answers of the user's own, and faults."""

import os
import threading
import time
from pathlib import Path

import pytest

from pytest_vmfest import CommandError, GroupStartError, Server, StartError
from pytest_vmfest.drivers.base import MachineState
from pytest_vmfest.drivers.fake import FakeFault
from pytest_vmfest.errors import (
    CommandTimeoutError,
    ConnectionLostError,
    DestroyError,
    DriverError,
    TransferError,
)
from pytest_vmfest.remote import Completed
from pytest_vmfest.specs import Login
from pytest_vmfest.waiting import Deadline, wait_for

FOREVER = Deadline(None)


@pytest.fixture
def server(tmp_path):
    """A server on a world of its own."""
    with Server(driver="fake", home=tmp_path, boot_timeout_s=5) as server:
        yield server


@pytest.fixture
def driver(server):
    """The server's driver."""
    return server.driver


@pytest.fixture
def node(server):
    """A running node."""
    with server.launch("box", image="tiny") as node:
        yield node


@pytest.fixture
def sh(server):
    """Run a script as root in a machine of its own; returns status, stdout and stderr."""
    machine = server.instance("m", "tiny")
    machine.start()

    def run(script, *, input=None, login=Login(), timeout_s=5):  # noqa: B008
        remote = server.driver.remote("m", login, FOREVER)
        done = remote.execute(script, input=input, deadline=Deadline(timeout_s))
        return done.exit_status, done.stdout.decode(), done.stderr.decode()

    yield run
    machine.destroy()


@pytest.mark.parametrize(
    ("script", "stdout"),
    [
        ("echo a   b '  c' \"d  e\" f\\ g '' h", "a b   c d  e f g  h\n"),
        ('export x=\'1  2\'; echo "$x" ${x}3 "$x"4 \'$x\' \\$x "\\$x"', "1  2 1  23 1  24 $x $x $x\n"),
        ("echo ';' \"&& > (\" 'it'\"'\"'s' a#b ü😀", "; && > ( it's a#b ü😀\n"),
        ("true && echo yes || echo no; false && echo yes || echo no", "yes\nno\n"),
        ("false &&\necho never\ntrue ||\necho never\necho $?", "0\n"),
        ("false; echo $?; nonsense 2>/dev/null; echo $?", "1\n127\n"),
        ("printf '%s-%s%%\\n' a b", "a-b%\n"),
        ("echo one; # don't ; echo no\necho two # another\n", "one\ntwo\n"),
        ("echo a\\\nb", "ab\n"),
        ("echo 2 >/tmp/2; echo more>> /tmp/2; cat < /tmp/2", "2\nmore\n"),
        ("cat /none >/tmp/f 2>&1; test -s /tmp/f && echo both; nonsense 2>>/tmp/g 1>&2", "both\n"),
        ("cat /none 2>/dev/null || echo missing", "missing\n"),
        ("cd /tmp; pwd; cd ../etc; pwd; cd; pwd; echo $HOME", "/tmp\n/etc\n/root\n/root\n"),
        ("test -d /tmp && [ -f /etc/hosts ] && [ -s /etc/hosts ] && [ a != b ] && echo all", "all\n"),
        ("[ -e /none ] || test -f /tmp || test a = b || echo none", "none\n"),
        ("uname -s; id -u; id -un; whoami; hostname", "Linux\n0\nroot\nroot\nlocalhost\n"),
        ("mkdir -p /tmp/a/b; touch /tmp/a/f; ls /tmp/a; rm -rf /tmp/a /none; ls /tmp", "b\nf\n"),
        ("sh -c 'echo \"inner\"; exit 3' || echo $?", "inner\n3\n"),
        ("su -s /bin/sh joe -c 'id -un; pwd'", "joe\n/root\n"),
        ("sync; date -u -s @0 >/dev/null", ""),
    ],
)
def test_the_shell(sh, script, stdout):
    """The part of the shell's language that the fake knows is spoken as by a real one."""
    assert sh(script)[1:] == (stdout, "")


@pytest.mark.parametrize(
    ("script", "status", "stderr"),
    [
        ("exit 7", 7, ""),
        ("exit 263", 7, ""),
        ("false", 1, ""),
        ("cat /none", 1, "cat: /none: No such file or directory\n"),
        ("echo x > /none/f", 1, "sh: /none/f: No such file or directory\n"),
        ("rm /none", 1, "rm: /none: No such file or directory\n"),
        ("rm /tmp", 1, "rm: /tmp: Is a directory\n"),
        ("cd /etc/hosts", 1, "cd: /etc/hosts: Not a directory\n"),
        ("cat /tmp", 1, "cat: /tmp: Is a directory\n"),
        ("sleep", 2, "sleep: more than the fake sleep understands\n"),
        ("[ -x /tmp ]", 2, "'[' -x /tmp ']': more than the fake [ understands\n"),
    ],
)
def test_failures_in_the_shell(sh, script, status, stderr):
    """Statuses and messages are a shell's; arguments that a command does not know are told."""
    assert sh(script) == (status, "", stderr)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("nonsense --now", "nonsense"),
        ("/usr/bin/nonsense", "/usr/bin/nonsense"),
        ("echo 'open", "'"),
        ("echo begun; sleep 1 &", "&"),
        ("echo begun; true | true", "|"),
        ("echo begun\nif true; then true; fi", "if"),
        ("echo begun && { echo group; }", "{"),
        ("! true", "!"),
        ("(true)", "("),
        ('echo "$(date)"', "$("),
        ("echo `date`", "`"),
        ("echo ${x:-y}", "${"),
        ("rm -rf /tmp/*", "*"),
        ("cat <<E\nE", "<<"),
    ],
)
def test_what_is_beyond_the_fake(sh, script, what):
    """A script that the fake cannot run is not begun; the error names what it was, and the way out."""
    hint = "unknown to the fake guest; FakeDriver.respond teaches it an answer"
    assert sh(script) == (127, "", f"sh: {what}: {hint}\n")


def test_standard_input(sh):
    """Input reaches the first command that reads it, byte for byte."""
    assert sh("cat", input=b"a\nb") == (0, "a\nb", "")
    assert sh("true; cat; echo done; cat", input=b"a\n") == (0, "a\ndone\n", "")


def test_sudo(sh):
    """Another user than root becomes root by sudo, which asks for the password if the image has one."""
    joe = Login(username="joe", sudo_password="right")
    assert sh("id -un; pwd", login=joe) == (0, "joe\n/home/joe\n", "")
    assert sh("sudo -n -H -u root -- /bin/sh -c 'id -un'", login=joe) == (0, "root\n", "")
    asking = "sudo -k -S -p '' -H -u root -- /bin/sh -c 'id -un; cat'"
    assert sh(asking, login=joe, input=b"right\nrest") == (0, "root\nrest", "")
    assert sh(asking, login=joe, input=b"wrong\nrest") == (1, "", "sudo: 1 incorrect password attempt\n")


def test_the_introduction_takes_effect(server):
    """Host name and names of the group are those of the launcher's script, also when it runs twice."""
    with server.launch_group({"db": 1, "web": 2}, image="tiny") as group:
        assert group["db-0"].check_output("hostname") == "db-0"
        group["web-1"].reboot()
        lines = group["web-1"].read_text("/etc/hosts").splitlines()
        assert lines == [
            "127.0.0.1 localhost",
            *(f"{group[name].ip} {name} # vmfest" for name in ("web-1", "db-0", "web-0")),
        ]
        assert group["web-1"].read_text("/etc/hostname") == "web-1\n"


def test_node_options_reach_the_command(node):
    """Environment, folder, user and input are composed by the node as for a real guest."""
    assert node.check_output("pwd; echo $WORD", cwd="/tmp", env={"WORD": "a 'b'"}) == "/tmp\na 'b'"
    assert node.check_output("id -un", user="nobody") == "nobody"
    assert node.check_output(["printf", "%s", "a  b"]) == "a  b"
    assert node.check_output("cat", input="ü") == "ü"
    with pytest.raises(CommandError, match="exited with 3"):
        node.check_output("exit 3")


def test_trees_there_and_back(node, tmp_path):
    """Files and folders travel with content, modes and links, and land inside a folder that exists."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "it's bytes").write_bytes(os.urandom(1000))
    (tree / "script").write_text("echo ran")
    (tree / "script").chmod(0o750)
    (tree / "link").symlink_to("sub/it's bytes")
    node.put(tree, "/srv/deep/tree")
    node.put(tree, "/srv/deep/tree")
    assert node.check_output("cat /srv/deep/tree/script") == "echo ran"
    assert node.check_output("ls /srv/deep/tree") == "link\nscript\nsub\ntree"
    node.get("/srv/deep/tree/tree", tmp_path / "back")
    node.get("/srv/deep/tree/link", tmp_path)
    for path in tree.rglob("*"):
        twin = tmp_path / "back" / path.relative_to(tree)
        assert twin.is_symlink() == path.is_symlink()
        if not path.is_symlink():
            assert twin.stat().st_mode == path.stat().st_mode
        if path.is_file():
            assert twin.read_bytes() == path.read_bytes()
    assert (tmp_path / "it's bytes").read_bytes() == (tree / "sub" / "it's bytes").read_bytes()


def test_files_that_cannot_be_copied(node, tmp_path):
    """Trouble with a file, here or there, names what was copied and why it failed."""
    with pytest.raises(TransferError, match=r"get /none to .*No such file"):
        node.get("/none", tmp_path / "x")
    with pytest.raises(TransferError, match=r"put .*none to /x: .*No such file"):
        node.put(tmp_path / "none", "/x")
    with pytest.raises(TransferError, match=r"read /tmp: .*Is a directory"):
        node.read_text("/tmp")
    node.write_text("/file", "x")
    with pytest.raises(TransferError, match="Not a directory"):
        node.write_text("/file/below", "x")


def test_answers_of_the_users_own(driver, node):
    """An answer stands for a simple command, wherever it is, and for a script that the fake cannot read."""
    driver.respond(r"systemctl is-active (\S+)", lambda call: f"{call.match[1]} on {call.machine[:3]}\n")
    driver.respond("apt-get .*", 100)
    driver.respond(r"two \| complicated", Completed(3, b"out", b"err"))
    driver.respond("count", lambda call: f"{len(call.input)}")
    assert node.check_output("systemctl is-active cron") == "cron on box"
    assert node.check_output("true && systemctl is-active 'a'; echo done") == "a on box\ndone"
    assert node.run("apt-get install x || echo $?", user="nobody").stdout == "100\n"
    result = node.run("two | complicated", cwd="/tmp", user="nobody")
    assert (result.exit_status, result.stdout, result.stderr) == (3, "out", "err")
    assert node.check_output("count", input="abc\n") == "4"


def test_an_answer_that_fails(driver, node):
    """The error of a user's own function reaches the user, whatever the command was wrapped in."""
    driver.respond("broken", lambda call: {}["key"])
    with pytest.raises(KeyError):
        node.run("broken", cwd="/tmp", user="nobody")


def test_the_last_answer_wins_and_machines_can_be_chosen(driver, server):
    """Answers given later are more special ones; a pattern limits them to some machines."""
    driver.respond("who", "everybody")
    driver.respond("who", "web", machine="web-*")
    with server.launch_group({"db": 1, "web": 1}, image="tiny") as group:
        assert {name: result.stdout for name, result in group.run("who").items()} == {
            "db-0": "everybody",
            "web-0": "web",
        }


def test_worlds_are_apart(server, tmp_path):
    """Servers with one store share machines and answers; with different stores they share nothing."""
    server.driver.respond("who", "mine")
    machine = server.instance("m", "tiny")
    twin, stranger = Server(driver="fake", home=tmp_path), Server(driver="fake", home=tmp_path / "other")
    assert twin.find("m").state is MachineState.POWERED_OFF
    assert stranger.machines() == []
    machine.destroy()
    assert twin.machines() == []


def test_memory_is_lost_with_the_power(node):
    """Files on disk survive a reboot, those in memory do not; another boot has another id."""
    node.write_text("/root/kept", "x")
    node.write_text("/tmp/lost", "x")
    before = node.check_output("cat /proc/sys/kernel/random/boot_id")
    node.reboot()
    assert node.check_output("cat /proc/sys/kernel/random/boot_id") != before
    assert node.read_text("/root/kept") == "x"
    assert not node.run("test -e /tmp/lost").ok
    assert node.check_output("hostname") == node.name == "box"


def test_snapshots_hold_files(node):
    """A revert brings back files; the node goes on by itself."""
    node.write_text("/root/state", "before")
    node.snapshot("here")
    node.write_text("/root/state", "after")
    node.revert("here")
    assert node.read_text("/root/state") == "before"


def test_the_console_takes_what_is_written_to_it(node):
    """The serial port is a file in the guest, as usual."""
    node.check_output("echo from inside > /dev/ttyS0")
    assert node.console().endswith("from inside\n")
    assert "image tiny" in node.console()


def test_a_command_that_takes_too_long(node):
    """The timeout holds, and what was said until then is in the error."""
    began = time.monotonic()
    with pytest.raises(CommandTimeoutError) as caught:
        node.run("echo early; sleep 60", timeout_s=0.05)
    assert time.monotonic() - began < 5
    assert caught.value.stdout == "early\n"


def test_commands_wait_while_the_machine_is_paused(node):
    """A paused guest answers only when it goes on."""
    node.pause()
    with pytest.raises(CommandTimeoutError):
        node._link._remote.execute("true", input=None, deadline=Deadline(0.05))
    answers = []
    remote = node._link._remote
    thread = threading.Thread(
        target=lambda: answers.append(remote.execute("echo on", input=None, deadline=FOREVER))
    )
    thread.start()
    node.resume()
    thread.join(5)
    assert answers[0].stdout == b"on\n"


@pytest.mark.parametrize("what", ["power_down", "destroy", "abort", "poweroff"])
def test_connections_break_with_the_machine(server, driver, what):
    """A command that runs when the machine goes away ends with a lost connection, as do later ones."""
    machine = server.instance("m", "tiny")
    machine.start()
    remote = driver.remote("m", Login(), FOREVER)
    caught = []

    def wait():
        try:
            remote.execute("echo > /tmp/begun; sleep 60", input=None, deadline=FOREVER)
        except ConnectionLostError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    other = driver.remote("m", Login(), FOREVER)
    begun = "cat /tmp/begun"
    wait_for(
        lambda: other.execute(begun, input=None, deadline=FOREVER).exit_status == 0, Deadline(5), what="begun"
    )
    if what == "poweroff":
        with pytest.raises(ConnectionLostError):
            other.execute("poweroff", input=None, deadline=FOREVER)
    elif what == "abort":
        driver.abort("m")
    else:
        getattr(machine, what)()
    thread.join(5)
    assert "connection lost" in str(caught[0])
    assert not remote.alive
    with pytest.raises(ConnectionLostError):
        remote.read_bytes("/etc/hosts", FOREVER)


@pytest.mark.parametrize(
    ("fault", "stage", "said"),
    [
        (FakeFault.CREATE_FAILS, "created", "cannot be created"),
        (FakeFault.START_FAILS, "running", "does not start"),
        (FakeFault.DIES, "running", "is aborted"),
        (FakeFault.PANICS, "running", "kernel panicked"),
        (FakeFault.UNREACHABLE, "running", "no answer within"),
    ],
)
def test_faults_of_a_start(server, driver, fault, stage, said):
    """Each fault ends in one start error that tells what happened, and leaves no machine."""
    server.boot_timeout_s = 0.1
    driver.inject(fault, times=1)
    with pytest.raises(StartError, match=said) as caught:
        server.launch("box", image="tiny")
    assert caught.value.stage == stage
    assert server.machines() == []
    server.launch("box", image="tiny").destroy()


def test_faults_of_some_machines(server, driver):
    """A fault can be limited to machines by name, and healed."""
    driver.inject(FakeFault.START_FAILS, machine="web-1-*")
    with pytest.raises(GroupStartError) as caught:
        server.launch_group({"web": 3}, image="tiny")
    assert list(caught.value.failures) == ["web-1"]
    assert server.machines() == []
    driver.heal()
    server.launch_group({"web": 3}, image="tiny").destroy()


def test_a_destroy_that_fails(server, driver):
    """The machine is still there, and can be destroyed once the fault is gone."""
    driver.inject(FakeFault.DESTROY_FAILS, times=1)
    machine = server.instance("m", "tiny")
    with pytest.raises(DestroyError, match="machine 'm' cannot be destroyed"):
        machine.destroy()
    assert [found.name for found in server.machines()] == ["m"]
    machine.destroy()
    assert server.machines() == []


def test_it_has_every_image(driver):
    """Names and templates become models of its own; paths are left to the store."""
    assert driver.own_image("anything").name == "anything"
    model = driver.own_image({"os_family": "debian", "os_version": "12"})
    assert (model.name, model.os_family, model.os_version) == ("debian", "debian", "12")
    assert driver.own_image(Path("disk.qcow2")) is None


def test_a_machine_that_does_not_start_stays_off(server, driver):
    """After an injected failure the machine is powered off, and its next start works."""
    machine = server.instance("m", "tiny")
    driver.inject(FakeFault.START_FAILS, times=1)
    with pytest.raises(DriverError):
        machine.start()
    assert machine.state is MachineState.POWERED_OFF
    machine.start()
    machine.destroy()
