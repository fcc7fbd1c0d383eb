"""Copying files and folders over SFTP, on a real OpenSSH server whose files are this host's."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import paramiko
import pytest
from ssh_server import OpenSsh, ParamikoServer, make_key, needs_sshd

from pytest_vmfest.errors import ConnectionLostError, TransferError
from pytest_vmfest.specs import Identity, Login
from pytest_vmfest.ssh import connect, sftp
from pytest_vmfest.ssh.copying import Download
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_vmfest.ssh.connection import SshRemote

MIB = 1 << 20
NAMES = [
    "plain",
    "with space",
    "ünïcödé ☃",
    "new\nline",
    "quo'te\"s",
    "-dash",
    "star*",
    "back\\slash",
    ".hidden",
]


@pytest.fixture
def soon() -> Deadline:
    """Time enough."""
    return Deadline(30)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with all that is copied: files, modes, links, empty folders, odd names."""
    tree = tmp_path / "tree"
    (tree / "empty folder").mkdir(parents=True)
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "deeper" / "empty file").touch()
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    (tree / "secret").write_bytes(bytes(range(256)))
    (tree / "secret").chmod(0o600)
    (tree / "read only").mkdir()
    (tree / "read only" / "file").write_text("x")
    (tree / "read only" / "file").chmod(0o444)
    (tree / "read only").chmod(0o555)
    (tree / "link to file").symlink_to("script")
    (tree / "link to folder").symlink_to("deep")
    (tree / "dangling").symlink_to("/nowhere/ünï")
    for name in NAMES:
        (tree / name).write_text(name)
    return tree


def _shape(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """All that counts of a tree: type and mode, and content or target."""
    shape: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: bytes | str | None = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        shape[str(path.relative_to(folder))] = (mode, content)
    return shape


@needs_sshd
def test_a_tree_there_and_back(remote: SshRemote, tree: Path, tmp_path: Path, soon: Deadline) -> None:
    """A folder arrives as it was, in both directions, under the new names."""
    remote.put(tree, str(tmp_path / "there"), soon)
    remote.get(str(tmp_path / "there"), tmp_path / "back", soon)

    assert len(_shape(tree)) == 11 + len(NAMES)
    assert _shape(tmp_path / "there") == _shape(tree)
    assert _shape(tmp_path / "back") == _shape(tree)


@needs_sshd
@pytest.mark.parametrize("direction", ["put", "get"])
def test_into_a_folder_or_under_a_new_name(
    remote: SshRemote, tmp_path: Path, soon: Deadline, direction: str
) -> None:
    """As with ``cp -r``: into a folder that is there, else under the given name; folders above are made."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("inner")
    (tmp_path / "target").mkdir()

    def copy(source: str, target: str) -> None:
        if direction == "put":
            remote.put(tmp_path / source, str(tmp_path / target), soon)
        else:
            remote.get(str(tmp_path / source), tmp_path / target, soon)

    copy("file", "target")
    copy("folder", "target")
    copy("file", "new/above/renamed")
    copy("folder", "also/new/renamed")
    copy("folder", "target")  # again: what is there is replaced

    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made == {
        "file",
        "folder/inner",
        "target/file",
        "target/folder/inner",
        "new/above/renamed",
        "also/new/renamed/inner",
    }
    assert (tmp_path / "new/above/renamed").read_text() == "content"


@needs_sshd
def test_a_trailing_slash_means_a_folder(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A target that ends in a slash is a folder, made if it is missing."""
    (tmp_path / "file").write_text("content")

    remote.put(tmp_path / "file", f"{tmp_path}/new/folder/", soon)

    assert (tmp_path / "new/folder/file").read_text() == "content"


@needs_sshd
def test_a_link_that_is_named_is_followed(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """The link that is asked for itself stands for what it points to, in both directions."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")

    remote.put(tmp_path / "link", str(tmp_path / "put"), soon)
    remote.get(str(tmp_path / "link"), tmp_path / "got", soon)
    (tmp_path / "folder").mkdir()
    remote.get(str(tmp_path / "link"), tmp_path / "folder", soon)

    for copy in (tmp_path / "put", tmp_path / "got", tmp_path / "folder" / "link"):
        assert not copy.is_symlink()
        assert copy.read_text() == "content"


@needs_sshd
def test_what_is_there_is_replaced(remote: SshRemote, tree: Path, tmp_path: Path, soon: Deadline) -> None:
    """Copying over an older copy changes content, modes and links, and leaves what else is there."""
    for copy in ("put", "got"):
        old = tmp_path / copy / "tree"
        old.mkdir(parents=True)
        (old / "secret").write_text("longer than what comes, " * 1000)
        (old / "script").write_text("old")
        (old / "dangling").symlink_to("elsewhere")
        (old / "extra").write_text("stays")

    remote.put(tree, str(tmp_path / "put"), soon)
    remote.get(str(tree), tmp_path / "got", soon)

    for copy in ("put", "got"):
        shape = _shape(tmp_path / copy / "tree")
        assert shape.pop("extra")[1] == b"stays"
        assert shape == _shape(tree)


@needs_sshd
def test_a_large_file(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A file of many pieces arrives whole in both directions."""
    content = random.Random(1).randbytes(20 * MIB + 12345)
    (tmp_path / "large").write_bytes(content)

    remote.put(tmp_path / "large", str(tmp_path / "put"), soon)
    remote.get(str(tmp_path / "large"), tmp_path / "got", soon)

    wanted = hashlib.sha256(content).digest()
    assert hashlib.sha256((tmp_path / "put").read_bytes()).digest() == wanted
    assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == wanted


@needs_sshd
@pytest.mark.parametrize(
    "size", [0, 1, sftp.CHUNK_BYTES - 1, sftp.CHUNK_BYTES, sftp.CHUNK_BYTES + 1, 3 * MIB]
)
def test_bytes_there_and_back(remote: SshRemote, tmp_path: Path, soon: Deadline, size: int) -> None:
    """Data of any size is written and read as it is."""
    data = random.Random(size).randbytes(size)

    remote.write_bytes(str(tmp_path / "data"), data, soon)

    assert (tmp_path / "data").read_bytes() == data
    assert remote.read_bytes(str(tmp_path / "data"), soon) == data


@needs_sshd
def test_writing_keeps_the_mode(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A file that is replaced keeps its mode; folders above a new one are made."""
    (tmp_path / "script").write_text("longer than the new one")
    (tmp_path / "script").chmod(0o750)

    remote.write_bytes(str(tmp_path / "script"), b"new", soon)
    remote.write_bytes(str(tmp_path / "a" / "b" / "new"), b"new", soon)

    assert (tmp_path / "script").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "script").stat().st_mode) == 0o750
    assert (tmp_path / "a" / "b" / "new").read_bytes() == b"new"


@needs_sshd
def test_files_that_lie_about_their_size(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """Files of the kernel, which claim to be empty or a page long, are read to their end."""
    assert b"processor" in remote.read_bytes("/proc/cpuinfo", soon)
    assert remote.read_bytes("/sys/kernel/mm/transparent_hugepage/enabled", soon).endswith(b"\n")
    remote.get("/proc/version", tmp_path / "version", soon)
    assert (tmp_path / "version").read_bytes().startswith(b"Linux")


@needs_sshd
def test_a_secret_is_never_readable_by_others(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A private file has its mode before it has content."""
    source = tmp_path / "secret"
    source.write_bytes(b"x")
    source.chmod(0o600)
    modes: list[int] = []
    session_write = sftp.SftpSession.write_file

    def slow_write(self: sftp.SftpSession, path: bytes, chunks: Any, mode: int | None) -> None:
        def watched() -> Iterator[bytes]:
            for chunk in chunks:
                # An answer to anything means that what was sent before it has been done.
                self.ask(paramiko.SFTPClient.stat, path)
                modes.append(stat.S_IMODE((tmp_path / "copy").stat().st_mode))
                yield chunk

        session_write(self, path, watched(), mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sftp.SftpSession, "write_file", slow_write)
        remote.put(source, str(tmp_path / "copy"), soon)

    assert modes == [0o600]


@needs_sshd
def test_special_files_are_refused(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """Pipes, sockets and devices are named and not copied, alone or inside a folder."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(tmp_path / "socket"))
    for source, kind in ((tmp_path / "folder", "named pipe"), (tmp_path / "socket", "socket")):
        with pytest.raises(TransferError, match=f"put {source}.*{kind}"):
            remote.put(source, str(tmp_path / "put"), soon)
        with pytest.raises(TransferError, match=f"get .*{source}.*{kind}"):
            remote.get(str(source), tmp_path / "got", soon)
    with pytest.raises(TransferError, match=r"get .*:/dev/null .*character device"):
        remote.get("/dev/null", tmp_path / "null", soon)


@needs_sshd
def test_what_is_missing_is_named(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A source that is not there is named with its target, and with the side where it is missing."""
    missing = tmp_path / "missing"
    where = rf"{remote._where}:/to"

    with pytest.raises(TransferError, match=rf"put {missing} to {where}: No such file.*on this host"):
        remote.put(missing, "/to", soon)
    with pytest.raises(
        TransferError, match=rf"get .*:{missing} to {tmp_path}: there is no such.*in the guest"
    ):
        remote.get(str(missing), tmp_path, soon)
    with pytest.raises(TransferError, match=rf"read .*:{missing}: there is no such.*in the guest"):
        remote.read_bytes(str(missing), soon)
    assert remote.execute("echo fine", input=None, deadline=soon).stdout == b"fine\n"


@needs_sshd
def test_refusals_of_the_guest(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """What is denied, and a folder where a file should be, is said as such."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        TransferError, match=r"write 1 bytes to .*:/proc/sys/kernel/version: the guest denies"
    ):
        remote.write_bytes("/proc/sys/kernel/version", b"x", soon)
    with pytest.raises(TransferError, match=r"read .*: in the guest it is a folder"):
        remote.read_bytes(str(tmp_path), soon)
    with pytest.raises(TransferError, match=r"put .*: there is no such file or folder in the guest"):
        remote.put(tmp_path / "file", str(tmp_path / "file" / "below"), soon)
    with pytest.raises(TransferError, match="is no path"):
        remote.read_bytes("", soon)
    assert remote.read_bytes("/proc/version", soon)


@needs_sshd
@pytest.mark.parametrize("size", [70_000, 10 * MIB])
def test_a_write_that_fails_late(tmp_path: Path, identity: Identity, soon: Deadline, size: int) -> None:
    """A failure of any write is noticed, also of the last one; a full disk is told apart."""
    (tmp_path / "file").write_bytes(bytes(size))
    with OpenSsh(tmp_path / "sshd", identity, largest_file=65536) as server:
        remote = server.connect()
        with pytest.raises(TransferError, match=r"put .*/file to .*/copy: the guest refused.*'Failure'"):
            remote.put(tmp_path / "file", str(tmp_path / "copy"), soon)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sftp, "_FULL_BYTES", 1 << 60)
            with pytest.raises(TransferError, match=r"write .*: no space is left on the guest's disk"):
                remote.write_bytes(str(tmp_path / "copy"), bytes(size), soon)
        remote.write_bytes(str(tmp_path / "copy"), b"small enough", soon)
        remote.close()

    assert (tmp_path / "copy").read_bytes() == b"small enough"


@needs_sshd
def test_free_space_is_read_right(openssh: OpenSsh, soon: Deadline, tmp_path: Path) -> None:
    """The server's figures are taken for what they are."""
    remote = openssh.connect()
    remote.write_bytes(str(tmp_path / "x"), b"", soon)
    session = remote._files._session
    assert session is not None
    here = os.statvfs(tmp_path)
    free = here.f_bavail * here.f_frsize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sftp, "_FULL_BYTES", free // 2)
        assert not session.is_full(os.fsencode(tmp_path))
        patch.setattr(sftp, "_FULL_BYTES", free * 2)
        assert session.is_full(os.fsencode(tmp_path))
    remote.close()


@needs_sshd
def test_trouble_on_this_host(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """A target that cannot be written here is named, and no half of a file remains."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        TransferError, match=r"get .*/folder to .*/file: File exists \(on this host: .*/file\)"
    ):
        remote.get(str(tmp_path / "folder"), tmp_path / "file", soon)
    (tmp_path / "large").write_bytes(bytes(2 * MIB))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(TransferError, match=r"get .* to .*/copy: File too large \(on this host"):
            remote.get(str(tmp_path / "large"), tmp_path / "copy", soon)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "copy").exists()
    assert remote.read_bytes(str(tmp_path / "file"), soon) == b"x"


@needs_sshd
def test_nothing_is_written_through_links(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """Links that are in the target already lead no file of the guest's to somewhere else."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "file").write_text("from the guest")
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "outside folder").mkdir()
    for name, target in (("file", "outside"), ("sub", "outside folder")):
        copy = tmp_path / name / "tree"
        copy.mkdir(parents=True)
        (copy / name).symlink_to(tmp_path / target)
        with pytest.raises(TransferError, match=f"{copy / name}"):
            remote.get(str(tmp_path / "tree"), tmp_path / name, soon)

    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    """A guest that lists a path instead of a name gets nothing written."""
    evil = paramiko.SFTPAttributes()
    evil.st_mode = stat.S_IFREG | 0o644
    evil.filename = name
    folder = paramiko.SFTPAttributes()
    folder.st_mode = stat.S_IFDIR | 0o755

    class Session:
        class channel:  # noqa: N801
            closed = False

        def ask(self, call: object, *arguments: object) -> list[paramiko.SFTPAttributes]:
            return [evil]

    with pytest.raises(TransferError, match="impossible name"):
        Download(Session(), "guest").get("/x", tmp_path / "x", folder)  # type: ignore[arg-type]

    assert list(tmp_path.rglob("*")) == [tmp_path / "x"]


@needs_sshd
def test_transfers_of_several_threads(remote: SshRemote, tmp_path: Path, soon: Deadline) -> None:
    """Threads share one connection for files; each gets its own."""
    contents = {f"file{number}": random.Random(number).randbytes(300_000) for number in range(8)}

    def there_and_back(name: str) -> bytes:
        remote.write_bytes(str(tmp_path / name), contents[name], soon)
        return remote.read_bytes(str(tmp_path / name), soon)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there_and_back, contents)) == list(contents.values())


@needs_sshd
def test_a_frozen_guest_times_out_and_recovers(
    openssh: OpenSsh, remote: SshRemote, tmp_path: Path, soon: Deadline
) -> None:
    """A transfer ends with its deadline, also one that waits for another; later ones work again."""
    remote.write_bytes(str(tmp_path / "file"), b"x", soon)
    with openssh.frozen():
        started = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            for done in [
                pool.submit(remote.read_bytes, str(tmp_path / "file"), Deadline(0.3)) for _ in range(2)
            ]:
                with pytest.raises(TransferError, match=r"read .*/file: not done within 0\.3 s"):
                    done.result()
        with pytest.raises(TransferError, match=r"put .*: not done within 0\.2 s"):
            remote.put(tmp_path, str(tmp_path / "copy"), Deadline(0.2))
        assert time.monotonic() - started < 3

    assert remote.read_bytes(str(tmp_path / "file"), soon) == b"x"


@needs_sshd
def test_a_connection_that_breaks(openssh: OpenSsh, remote: SshRemote, tmp_path: Path) -> None:
    """A transfer under way ends at once when the guest dies; the error names the file."""
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    copy = tmp_path / "copy"
    errors: list[Exception] = []

    def get() -> None:
        try:
            remote.get(str(tmp_path / "huge"), copy, Deadline(60))
        except ConnectionLostError as error:
            errors.append(error)

    getting = threading.Thread(target=get)
    getting.start()
    wait_for(lambda: copy.exists() and copy.stat().st_size, Deadline(10), what="the first piece")
    openssh.hang_up()
    getting.join(5)

    assert not getting.is_alive()
    assert str(tmp_path / "huge") in str(errors[0])
    with pytest.raises(ConnectionLostError):
        remote.read_bytes(str(tmp_path / "huge"), Deadline(5))
    assert not copy.exists()


@needs_sshd
@pytest.mark.parametrize("subsystem", [None, "/nonexistent/sftp-server", "echo welcome to this server"])
def test_a_guest_without_sftp(
    tmp_path: Path, identity: Identity, soon: Deadline, subsystem: str | None
) -> None:
    """Where SFTP is missing or broken, the error says so and what to install; commands still work."""
    with OpenSsh(tmp_path / "sshd", identity, subsystem=subsystem) as server:
        remote = server.connect()
        with pytest.raises(TransferError, match="the guest offers no SFTP") as caught:
            remote.read_bytes("/etc/hostname", soon)
        assert "openssh-sftp-server" in caught.value.hint
        assert remote.execute("echo fine", input=None, deadline=soon).stdout == b"fine\n"
        remote.close()


class _Short(paramiko.SFTPServerInterface):
    """A file that is served in pieces smaller than asked for, as servers may."""

    content = random.Random(5).randbytes(200_000)

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        if path != "/file":
            return paramiko.SFTP_NO_SUCH_FILE
        attributes = paramiko.SFTPAttributes()
        attributes.st_mode = stat.S_IFREG | 0o644
        attributes.st_size = len(self.content)
        return attributes

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        if flags & os.O_WRONLY:
            return paramiko.SFTPServer.convert_errno(errno.EACCES)

        class Handle(paramiko.SFTPHandle):
            def read(self, offset: int, length: int) -> bytes | int:
                return _Short.content[offset : offset + min(length, 10_000)] or paramiko.SFTP_EOF

        return Handle(flags)


def test_a_server_that_gives_less_than_asked(tmp_path: Path, soon: Deadline) -> None:
    """Short answers are completed, and what was asked ahead in vain is forgotten."""
    key = make_key(tmp_path / "key")
    with ParamikoServer(key, password="x", sftp=_Short) as server:
        remote = connect(server.endpoint, Login(password="x"), soon)
        assert remote.read_bytes("/file", soon) == _Short.content
        with pytest.raises(TransferError, match=r"write .*:/file: the guest denies permission"):
            remote.write_bytes("/file", b"x", soon)
        assert remote.read_bytes("/file", soon) == _Short.content
        remote.close()
