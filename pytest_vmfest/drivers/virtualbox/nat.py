"""NAT redirects: ports of this host that lead into a guest, and how their numbers are chosen.

VirtualBox does not choose ports itself. So each is held by a bound socket of ours, from its choice until the
machine listens on it: with SO_REUSEADDR on both sides, and nobody else listening, Linux lets both have it,
and gives it to nobody who asks for any free port. Afterwards it is checked that it is the machine's process
that listens there. (For UDP, VirtualBox asks for SO_REUSEADDR only after it has bound its socket: such a port
cannot be held for it, and the check has to do.)

Rules whose port is ours to choose are called ``vmfest-…``; at each start they get a new one.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.errors import DriverError, WaitTimeoutError
from pytest_vmfest.specs import Endpoint
from pytest_vmfest.waiting import Deadline, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from virtualbox.library import IMachine

    from pytest_vmfest.devices import NatRule

LOOPBACK = "127.0.0.1"
SSH_PORT = 22

_OURS = "vmfest-"
SSH_RULE = f"{_OURS}ssh"
_FORWARD = f"{_OURS}forward-"

# By the time that its process runs, VirtualBox has opened its ports or given up.
_OPEN_TIMEOUT_S = 5.0
_TRIES = 4


@dataclass(frozen=True)
class Redirect:
    """One rule of a NAT, as VirtualBox has it. An empty ``guest`` is the guest's address in the NAT."""

    name: str
    protocol: Literal["tcp", "udp"]
    host: str
    host_port: int
    guest: str
    guest_port: int

    @property
    def is_ours(self) -> bool:
        """Whether the port is ours to choose."""
        return self.name.startswith(_OURS)

    @property
    def endpoint(self) -> Endpoint:
        """Where it is entered."""
        return Endpoint(self.host, self.host_port)


def parse(text: str) -> Redirect:
    """A rule in VirtualBox's words.

    >>> parse("web,1,127.0.0.1,8080,,80").endpoint
    Endpoint(host='127.0.0.1', port=8080)
    """
    name, protocol, host, host_port, guest, guest_port = text.split(",")
    return Redirect(name, "tcp" if protocol == "1" else "udp", host, int(host_port), guest, int(guest_port))


def rules(machine: IMachine, slot: int) -> dict[str, Redirect]:
    """The rules of the NAT behind a machine's card, by name."""
    found = map(parse, machine.get_network_adapter(slot).nat_engine.redirects)
    return {rule.name: rule for rule in found}


def set_rule(machine: IMachine, slot: int, rule: Redirect) -> None:
    """Add a rule, or put it in the place of the one of its name; a running machine heeds it at once."""
    from virtualbox.library import NATProtocol

    engine = machine.get_network_adapter(slot).nat_engine
    if rule.name in rules(machine, slot):
        engine.remove_redirect(rule.name)
    engine.add_redirect(
        rule.name,
        getattr(NATProtocol, rule.protocol),
        rule.host,
        rule.host_port,
        rule.guest,
        rule.guest_port,
    )


def set_up(machine: IMachine, slot: int, wanted: Sequence[NatRule], *, ssh: bool) -> None:
    """Give a new machine its rules; the ports that are ours to choose are chosen by `Ports` at each start."""
    new = [Redirect(SSH_RULE, "tcp", LOOPBACK, 0, "", SSH_PORT)] if ssh else []
    for one in wanted:
        name = one.name if one.host_port else f"{_OURS}{one.name}"
        new.append(Redirect(name, one.protocol, one.host, one.host_port or 0, one.guest, one.guest_port))
    with ExitStack() as stack:
        for rule in new:
            # A rule has to have a port; this one need not stay free.
            port = rule.host_port or stack.enter_context(_held_port(rule))
            set_rule(machine, slot, replace(rule, host_port=port))


class Ports:
    """The ports of one start: chosen and held before it, handed over after it.

    ::

        with Ports(locked_machine, slot) as ports:
            launch(machine)
            ports.hand_over(shared_machine, process_id)
    """

    def __init__(self, machine: IMachine, slot: int) -> None:
        """See that the rules' ports are free; where one of ours is not any more, another is chosen.

        ``machine`` is locked, and its settings are changed. Raises `DriverError` that names the user's rule
        whose port is taken.
        """
        self._slot = slot
        self._held = ExitStack()
        with trouble.translated(f"machine {machine.name!r}: its NAT rules cannot be set"), self._held:
            for rule in rules(machine, slot).values():
                try:
                    self._held.enter_context(_held_port(rule))
                except DriverError:
                    if not rule.is_ours:
                        raise
                    port = self._held.enter_context(_held_port(replace(rule, host_port=0)))
                    set_rule(machine, slot, replace(rule, host_port=port))
            machine.save_settings()
            self._held = self._held.pop_all()

    def __enter__(self) -> Ports:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the ports."""
        self._held.close()

    def hand_over(self, machine: IMachine, pid: int) -> None:
        """See that the machine's process listens on all of them; where it does not, take another port.

        ``machine`` runs and is locked (shared). Raises `DriverError`.
        """
        with trouble.translated(f"machine {machine.name!r}: its NAT rules cannot be set"):
            for rule in rules(machine, self._slot).values():
                if not _opened(rule, pid):
                    if not rule.is_ours:
                        raise DriverError(
                            f"machine {machine.name!r}: VirtualBox did not open {rule.endpoint} "
                            f"for the NAT rule {rule.name!r}",
                            hint="VBox.log in the machine's Logs folder tells why",
                        )
                    open_rule(machine, self._slot, rule, pid)
        self._held.close()


def open_rule(machine: IMachine, slot: int, rule: Redirect, pid: int) -> Redirect:
    """Set a rule on a running machine at a free port, and see that its process listens there.

    Raises `DriverError` if VirtualBox does not open any.
    """
    for _ in range(_TRIES):
        with _held_port(replace(rule, host_port=0)) as port:
            tried = replace(rule, host_port=port)
            set_rule(machine, slot, tried)
            if _opened(tried, pid):
                machine.save_settings()
                return tried
    machine.get_network_adapter(slot).nat_engine.remove_redirect(rule.name)
    raise DriverError(
        f"machine {machine.name!r}: VirtualBox opened no way to port {rule.guest_port} of the guest",
        hint="VBox.log in the machine's Logs folder tells why",
    )


def ssh_endpoint(machine: IMachine, slot: int) -> Endpoint | None:
    """Where port 22 of a running guest is reached through the NAT behind a card; None if it is not."""
    with trouble.translated(f"machine {machine.name!r}: its NAT rules cannot be read"):
        found = rules(machine, slot).get(SSH_RULE)
    return found.endpoint if found else None


def close_ssh(machine: IMachine, slot: int) -> None:
    """Close that way; ``machine`` is locked."""
    if SSH_RULE in rules(machine, slot):
        machine.get_network_adapter(slot).nat_engine.remove_redirect(SSH_RULE)


def forward(machine: IMachine, slot: int, guest_port: int, pid: int) -> Endpoint:
    """A free loopback port that leads to a TCP port of the running guest; a way that is open is used.

    ``machine`` is locked (shared), ``pid`` is its process.
    """
    with trouble.translated(f"machine {machine.name!r}: no way to port {guest_port} can be opened"):
        for rule in rules(machine, slot).values():
            ways = (rule.protocol, rule.host, rule.guest_port, rule.guest)
            if ways == ("tcp", LOOPBACK, guest_port, ""):
                return rule.endpoint
        wanted = Redirect(f"{_FORWARD}{guest_port}", "tcp", LOOPBACK, 0, "", guest_port)
        return open_rule(machine, slot, wanted, pid).endpoint


@contextmanager
def _held_port(rule: Redirect) -> Iterator[int]:
    """The rule's port, or a free one for 0, held by a socket that is bound to it and does not listen.

    Raises `DriverError` if it is taken.
    """
    with socket.socket(socket.AF_INET, _kind(rule)) as held:
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((rule.host, rule.host_port))
        except OSError as error:
            raise DriverError(
                f"NAT rule {rule.name!r}: {rule.endpoint} of this host cannot be had: {error.strerror}",
                hint="leave host_port out, and a free port is taken",
            ) from error
        port: int = held.getsockname()[1]
        if rule.protocol == "udp":
            held.close()
        yield port


def _kind(rule: Redirect) -> socket.SocketKind:
    return socket.SOCK_STREAM if rule.protocol == "tcp" else socket.SOCK_DGRAM


def _opened(rule: Redirect, pid: int) -> bool:
    """Whether the process listens at the rule's port, soon."""
    is_open = _watch(rule, pid)
    try:
        wait_for(is_open, Deadline(_OPEN_TIMEOUT_S), what=f"port {rule.host_port}")
    except WaitTimeoutError:
        return False
    return True


def _watch(rule: Redirect, pid: int) -> Callable[[], bool]:
    import psutil

    def is_open() -> bool:
        try:
            process = psutil.Process(pid)
            # The one name came with psutil 6, the other goes.
            list_all = getattr(process, "net_connections", None) or process.connections
            connections = list_all("inet")
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            # VirtualBox's programs are set-uid: which sockets are theirs is for root to see. We hold the
            # port, so that whoever listens there knew its number.
            connections = psutil.net_connections("inet")
        return any(_fits(connection, rule, pid) for connection in connections)

    return is_open


def _fits(connection: object, rule: Redirect, pid: int) -> bool:
    address = getattr(connection, "laddr", None)
    if getattr(connection, "pid", None) not in (None, pid) or not address:
        return False
    if getattr(connection, "type", None) != _kind(rule) or (address.ip, address.port) != (
        rule.host,
        rule.host_port,
    ):
        return False
    return rule.protocol == "udp" or getattr(connection, "status", "") == "LISTEN"
