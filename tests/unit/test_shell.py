"""Composed scripts, tried in this host's own shell."""

import subprocess

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.shell import compose
from pytest_vmfest.specs import Login

ROOT = Login("root")


def sh(text: str) -> str:
    """What a POSIX shell prints for a script."""
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("word", ["two words", "it's", '"$HOME"', "a\nb", "", "*", "-n", "ünï"])
def test_argument_lists_arrive_as_they_are(word):
    """Whatever is in an argument, the program gets just that."""
    assert sh(compose(["printf", "%s|", word, "end"], ROOT).text) == f"{word}|end|"


def test_directory_and_environment(tmp_path):
    """The command runs in its directory with its variables, whatever characters they hold."""
    place = tmp_path / "it's here"
    place.mkdir()
    script = compose("pwd; printf '%s' \"$WORD\"", ROOT, cwd=str(place), env={"WORD": "a 'b' $c"})
    assert sh(script.text) == f"{place}\na 'b' $c"


def test_a_missing_directory_keeps_the_command_from_running():
    """Without its working directory the command does not run at all."""
    done = subprocess.run(
        ["/bin/sh", "-c", compose("echo ran", ROOT, cwd="/no/such").text], capture_output=True
    )
    assert done.returncode != 0
    assert done.stdout == b""


def test_comments_and_here_documents_survive():
    """A trailing comment or a here-document does not swallow what is composed around it."""
    assert sh(compose("cat <<E\nx\nE", ROOT, cwd="/").text) == "x\n"
    assert sh(compose("echo x # why", ROOT, env={"A": "b"}).text) == "x\n"


def test_root_becomes_another_user_by_su():
    """From root, su runs the whole composed text as the other user."""
    script = compose("id -un", ROOT, user="daemon", cwd="/")
    assert script.text.startswith("su -s /bin/sh daemon -c ")
    assert script.input_prefix == b""


def test_others_use_sudo_with_the_password_before_the_input():
    """A sudo password is given on standard input, before the command's own."""
    assert compose("id", Login("user"), user="root").text.startswith("sudo -n -H -u root -- /bin/sh -c ")
    script = compose("id", Login("user", sudo_password="secret"), user="root")
    assert "secret" not in script.text
    assert script.input_prefix == b"secret\n"


def test_the_login_user_needs_neither():
    """Asking for the user that one is already changes nothing."""
    assert compose("id", Login("user", no_sudo=True), user="user").text == "id"


def test_refusals():
    """No sudo, no such variable name, no command: each is a clear error."""
    with pytest.raises(ConfigurationError, match="has no sudo"):
        compose("id", Login("user", no_sudo=True), user="root")
    with pytest.raises(ConfigurationError, match="'A-B' cannot be the name"):
        compose("id", ROOT, env={"A-B": "1"})
    with pytest.raises(ConfigurationError, match="no command"):
        compose([], ROOT)
