"""SSH servers to test against, all on loopback: a real OpenSSH, paramiko's own, and ones that misbehave."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pytest_vmfest.specs import Endpoint, Identity, Login
from pytest_vmfest.ssh import connect
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_vmfest.ssh.connection import SshRemote

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

needs_sshd = pytest.mark.skipif(SSHD is None, reason="NO SSHD: install openssh-server to test SSH for real")


def make_key(path: Path, kind: str = "ed25519", *, passphrase: bytes | None = None) -> paramiko.PKey | None:
    """A new private key in a file, as ``ssh-keygen`` would make it; "pem" is RSA in the older format."""
    form = serialization.PrivateFormat.OpenSSH
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
    elif kind == "ecdsa":
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, 2048)
        form = serialization.PrivateFormat.TraditionalOpenSSL if kind == "pem" else form
    cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, cipher))
    return None if passphrase else paramiko.PKey.from_path(path)


class Server:
    """Gives every connection to a port of its own on loopback to ``serve``, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.connections = 0
        self.sockets: list[socket.socket] = []
        self._serve = serve
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(*self._listener.getsockname())
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self.sockets.append(sock)
                thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _run(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._serve(sock)

    def hang_up(self) -> None:
        """Cut all connections."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        """End the server and its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[Server]:
    """A `Server` for the block."""
    with Server(serve) as server:
        yield server


class OpenSsh(Server):
    """A real ``sshd``, one process for each connection (its inetd mode), run by and for the present user.

    No file may grow beyond ``largest_file`` bytes there. ``before`` is called with each new connection.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        *,
        subsystem: str | None = "internal-sftp",
        largest_file: int | None = None,
        before: Callable[[socket.socket], None] = lambda sock: None,
    ) -> None:
        folder.mkdir()
        self.home = folder
        self.log = folder / "sshd.log"
        self._before = before
        self._largest_file = largest_file
        self._processes: list[subprocess.Popen[bytes]] = []
        host_key = folder / "host_key"
        host_key.touch(mode=0o600)
        host_key.write_text(identity.host_private_key)
        authorized = folder / "authorized_keys"
        authorized.write_text(f"{identity.authorized_key}\n")
        self._config = folder / "sshd_config"
        lines = [
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {authorized}",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "UseDNS no",
            "PidFile none",
            # Keeps the start-up files of whoever runs the tests out of them.
            f"SetEnv HOME={folder}",
        ]
        if subsystem is not None:
            lines.append(f"Subsystem sftp {subsystem}")
        self._config.write_text("\n".join([*lines, ""]))
        if os.geteuid() == 0:
            # An sshd that root starts wants this empty folder, which its service makes where there is one. It
            # stays: other tests that run at the same time need it, too.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.login = Login(
            getpass.getuser(), private_key=identity.private_key, host_key=identity.host_public_key
        )
        super().__init__(self._spawn)

    def _spawn(self, sock: socket.socket) -> None:
        assert SSHD is not None
        self._before(sock)
        command = [SSHD, "-i", "-e", "-f", str(self._config)]
        if self._largest_file is not None:
            command = ["prlimit", f"--fsize={self._largest_file}", *command]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=sock,
                stdout=sock,
                stderr=log,
                start_new_session=True,
                # Python ignores the signal for too large a file, and so does the server then.
                restore_signals=False,
            )
        self._processes.append(process)
        sock.close()
        process.wait()

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let nothing of the server go on during the block, as in a guest that hangs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def hang_up(self) -> None:
        """Kill the servers of all connections, and what runs under them."""
        for server in self._processes:
            if server.poll() is not None:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                # The server first, so that it cannot tell how its commands end.
                whole = psutil.Process(server.pid)
                for process in (whole, *whole.children(recursive=True)):
                    process.kill()
            server.wait()
        super().hang_up()

    def connect(self) -> SshRemote:
        """A connection to the server."""
        return connect(self.endpoint, self.login, Deadline(20))


class ParamikoServer(Server):
    """Paramiko's server: logins by choice, and commands that are answered by ``on_command``."""

    def __init__(
        self,
        *host_keys: paramiko.PKey,
        password: str | None = None,
        authorized: paramiko.PKey | None = None,
        interactive: bool = False,
        on_command: Callable[[paramiko.Channel], bool] = lambda channel: False,
        sftp: type[paramiko.SFTPServerInterface] | None = None,
    ) -> None:
        self.host_keys = host_keys
        self.password = password
        self.authorized = authorized
        self.interactive = interactive
        self.on_command = on_command
        self.sftp = sftp
        self.tried: list[str] = []
        super().__init__(self._talk)

    @property
    def host_key(self) -> str:
        """The first host key, as a `Login` has it."""
        key = self.host_keys[0]
        return f"{key.get_name()} {key.get_base64()}"

    def _talk(self, sock: socket.socket) -> None:
        with paramiko.Transport(sock) as transport:
            for key in self.host_keys:
                transport.add_server_key(key)
            if self.sftp is not None:
                transport.set_subsystem_handler("sftp", paramiko.SFTPServer, self.sftp)
            transport.start_server(event=threading.Event(), server=_Rules(self))
            transport.join()
            # A timer that paramiko leaves running when a handshake breaks off.
            transport.packetizer.complete_handshake()


class _Rules(paramiko.ServerInterface):
    """What a `ParamikoServer` allows on one connection."""

    def __init__(self, server: ParamikoServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:
        return "keyboard-interactive" if self._server.interactive else "publickey,password"

    def check_auth_none(self, username: str) -> int:
        return paramiko.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._server.tried.append("publickey")
        return paramiko.AUTH_SUCCESSFUL if key == self._server.authorized else paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        self._server.tried.append("password")
        if self._server.interactive:
            return paramiko.AUTH_FAILED
        return paramiko.AUTH_SUCCESSFUL if password == self._server.password else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        self._server.tried.append("keyboard-interactive")
        query = paramiko.InteractiveQuery()
        query.add_prompt("Password: ", False)
        return query

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return paramiko.AUTH_SUCCESSFUL if responses == [self._server.password] else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return self._server.on_command(channel)
