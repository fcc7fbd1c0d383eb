"""The SSH transport: paramiko's, with algorithms chosen for emulated guests and one message more."""

from __future__ import annotations

import logging
import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

from paramiko import Channel, Message, SSHException, Transport
from paramiko.common import MSG_CHANNEL_REQUEST, cMSG_CHANNEL_REQUEST

from pytest_vmfest.ssh import clock
from pytest_vmfest.ssh.background import Call, OutOfTimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_vmfest.ssh.wire import Wire
    from pytest_vmfest.waiting import Deadline

# Quickest first. Each list is an order of preference: what the guest and the library share counts, and what
# is not named here comes after, except for the hybrid post-quantum exchanges, which alone cost 0.25 s.
_KEY_EXCHANGES = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
_SLOW_KEY_EXCHANGES = ("mlkem", "sntrup")
# Without AES instructions (QEMU's Nehalem under TCG) OpenSSL does 38 MB/s of aes128-gcm, against 28 MB/s of
# aes128-ctr with its hmac-sha2-256.
_CIPHERS = ("aes128-gcm@openssh.com", "aes128-ctr")
_MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")

# A guest whose hypervisor is gone without a word (a bridged one) is noticed when this cannot be delivered. It
# asks for no answer, so a paused guest keeps its connection.
KEEPALIVE_S = 15
# The library's own time limits stay out of the way: the callers' deadlines count.
FOREVER_S = 10.0**6

LOG_CHANNEL = "pytest_vmfest.paramiko"

clock.steady()


class GuestTransport(Transport):
    """A client's transport that also understands ``exit-signal`` (RFC 4254, section 6.10)."""

    def __init__(self, wire: Wire, *, known_key_type: str | None) -> None:
        """Prepare a session on ``wire``; a host key of ``known_key_type`` is asked for first."""
        # Wire has all the methods that the library documents for its argument.
        super().__init__(wire)  # type: ignore[arg-type]
        self.set_log_channel(_quiet_log())
        self.use_compression(False)
        self.banner_timeout = self.handshake_timeout = self.auth_timeout = FOREVER_S
        options = self.get_security_options()
        exchanges = _preferred(options.kex, _KEY_EXCHANGES)
        options.kex = [name for name in exchanges if not name.startswith(_SLOW_KEY_EXCHANGES)]
        options.ciphers = _preferred(options.ciphers, _CIPHERS)
        options.digests = _preferred(options.digests, _MACS)
        options.key_types = _preferred(options.key_types, _signatures(known_key_type))

    def kill(self, channel: Channel) -> None:
        """End the command that runs on ``channel`` and its process group with SIGKILL.

        A ``signal`` request (RFC 4254, section 6.9). OpenSSH heeds it since 7.9, except in sessions of root.
        """
        message = Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("KILL")
        self._send_user_message(message)  # type: ignore[attr-defined]

    def shut(self) -> None:
        """End the session and its thread; allowed more than once, and before it began."""
        self.sock.close()
        self.close()
        if self.is_alive():
            self.join(5)
        # A timer that the library leaves running when a handshake breaks off.
        self.packetizer.complete_handshake()

    _channel_handler_table: ClassVar = {
        **Transport._channel_handler_table,  # type: ignore[attr-defined]
        MSG_CHANNEL_REQUEST: lambda channel, message: _channel_request(channel, message),
    }


def open_channel(
    transport: GuestTransport,
    request: Callable[[Channel], None],
    deadline: Deadline,
    *,
    unused: Callable[[], None] = lambda: None,
    discard: Callable[[Channel], None] = Channel.close,
) -> Channel:
    """A new session channel on which ``request`` (``exec_command``, …) has been granted.

    The library waits for both without a time limit, hence the thread. When the guest answers too late, the
    channel is given to ``discard``, so that none is left over; ``unused`` is called if there never will be
    one. Raises `OutOfTimeError` and what the library raises.
    """

    def opened() -> Channel:
        try:
            channel = _open_session(transport)
            try:
                request(channel)
            except BaseException:
                channel.close()
                raise
        except BaseException:
            unused()
            raise
        return channel

    call = Call(opened, dispose=discard)
    try:
        if not call.wait(deadline.timeout()):
            raise OutOfTimeError
        return call.result()
    except BaseException:
        call.give_up()
        raise


def _open_session(transport: GuestTransport) -> Channel:
    """A new channel; a guest that has too many just now is asked again for a second.

    A session counts in the guest until it has our answer to its end, which the library may send after the
    next session's beginning.
    """
    for pause_s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.6):
        try:
            return transport.open_session(timeout=FOREVER_S)
        except SSHException:
            if not transport.is_active():
                raise
        time.sleep(pause_s)
    return transport.open_session(timeout=FOREVER_S)


def _channel_request(channel: Any, message: Message) -> None:
    """A request of the guest's about one of our channels: how its command ended."""
    start = message.packet.tell()
    if message.get_text() == "exit-signal":
        message.get_boolean()
        channel.exit_status = 128 + _signal_number(message.get_text())
        channel.status_event.set()
        return
    message.packet.seek(start)
    Channel._handle_request(channel, message)  # type: ignore[attr-defined]


def _signal_number(name: str) -> int:
    """The number of the signal ``name`` ("KILL"); 0 for one without a portable name."""
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError:
        return 0


def _preferred(known: Sequence[str], first: Sequence[str]) -> list[str]:
    return [name for name in first if name in known] + [name for name in known if name not in first]


def _signatures(key_type: str | None) -> tuple[str, ...]:
    """The signature algorithms that go with a public key of type ``key_type``."""
    if key_type is None:
        return ("ssh-ed25519",)
    if key_type == "ssh-rsa":
        return ("rsa-sha2-512", "rsa-sha2-256")
    return (key_type,)


def _quiet_log() -> str:
    """The name of a log of our own, silent unless its level is set.

    The library logs an error with its traceback for every connection that a booting guest drops. Its own
    logs stay as they are: they belong to tests that use the library themselves.
    """
    log = logging.getLogger(LOG_CHANNEL)
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL + 1)
    return LOG_CHANNEL
