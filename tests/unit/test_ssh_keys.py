"""The keys of an image store."""

from __future__ import annotations

import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ssh_server import make_key

from pytest_vmfest.errors import StoreError
from pytest_vmfest.ssh import ensure_identity

if TYPE_CHECKING:
    from pathlib import Path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_made_once(tmp_path: Path) -> None:
    """The keys are made when first asked for, and are the same ever after."""
    first = ensure_identity(tmp_path / "store" / "keys")

    assert ensure_identity(tmp_path / "store" / "keys") == first
    assert first.authorized_key.startswith("ssh-ed25519 AAAA")
    assert first.host_public_key.startswith("ssh-ed25519 AAAA")
    assert first.host_public_key.split()[1] not in first.authorized_key
    assert first.host_private_key.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert first.private_key == tmp_path / "store" / "keys" / "id_ed25519"


def test_ssh_keygen_agrees(tmp_path: Path) -> None:
    """OpenSSH reads both private keys and derives the same public keys."""
    identity = ensure_identity(tmp_path)

    for path, public in (
        (identity.private_key, identity.authorized_key),
        (tmp_path / "host_ed25519", identity.host_public_key),
    ):
        derived = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True)
        assert derived.stdout.split()[:2] == public.split()[:2]
        assert path.with_name(f"{path.name}.pub").read_text().split()[:2] == public.split()[:2]
    assert (tmp_path / "host_ed25519").read_text() == identity.host_private_key


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    """Folder and private keys are closed to others, also when they had been opened since."""
    folder = tmp_path / "keys"
    ensure_identity(folder)
    folder.chmod(0o755)
    (folder / "id_ed25519").chmod(0o644)

    ensure_identity(folder)

    assert _mode(folder) == 0o700
    assert _mode(folder / "id_ed25519") == _mode(folder / "host_ed25519") == 0o600


def test_several_processes_at_once(tmp_path: Path) -> None:
    """Processes that ask at the same time get the same keys, and leave nothing but these."""
    script = (
        "import sys; from pathlib import Path; from pytest_vmfest.ssh import ensure_identity;"
        "print(ensure_identity(Path(sys.argv[1])).authorized_key)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path / "keys"], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in processes}

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert answers == {f"{ensure_identity(tmp_path / 'keys').authorized_key}\n".encode()}
    assert {path.name for path in (tmp_path / "keys").iterdir()} - {".lock"} == {
        "id_ed25519",
        "id_ed25519.pub",
        "host_ed25519",
        "host_ed25519.pub",
    }


def test_a_lost_public_half_is_derived_again(tmp_path: Path) -> None:
    """A ``.pub`` file that is missing or wrong is written anew from the private key."""
    identity = ensure_identity(tmp_path)
    public = tmp_path / "id_ed25519.pub"
    line = public.read_text()

    public.unlink()
    assert ensure_identity(tmp_path) == identity
    assert public.read_text() == line
    public.write_text("something else")
    assert ensure_identity(tmp_path) == identity
    assert public.read_text() == line


@pytest.mark.parametrize("content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA", b"\xff\x00"])
@pytest.mark.parametrize("name", ["id_ed25519", "host_ed25519"])
def test_a_damaged_key_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """A private key that cannot be read is never replaced silently: the error says which and what to do."""
    ensure_identity(tmp_path)
    (tmp_path / name).write_bytes(content)

    with pytest.raises(StoreError, match=str(tmp_path / name)) as caught:
        ensure_identity(tmp_path)

    assert "damaged" in caught.value.message
    assert "remove it" in caught.value.hint
    assert (tmp_path / name).read_bytes() == content


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    """What is called ed25519 must be."""
    make_key(tmp_path / "id_ed25519", "ecdsa")

    with pytest.raises(StoreError, match="not of type ed25519"):
        ensure_identity(tmp_path)


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    """Where no folder can be, the error names it and says what to do."""
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match=str(tmp_path / "file" / "keys")) as caught:
        ensure_identity(tmp_path / "file" / "keys")

    assert "VMFEST_HOME" in caught.value.hint
