"""Giving a machine that went on from a frozen one the addresses that its cards have by its settings.

Until then they are the frozen machine's, so all cards but the one behind the NAT are unplugged. The guest is
told by that way (`move_in`): a program writes each card's new address into its EEPROM, where the guest finds
it after a reboot as well. Then the cards are plugged in, and DHCP clients begin anew.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.drivers.virtualbox import frozen, nat, networks, trouble
from pytest_vmfest.drivers.virtualbox.machines import QUICK_S
from pytest_vmfest.errors import CommandError, ThawError
from pytest_vmfest.shell import find_card
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_vmfest.drivers.base import DriverSettings
    from pytest_vmfest.drivers.virtualbox.machines import Machine, Machines

_CARD = "/var/lib/vmfest/card"
"""Where guests have the program ``card.S``."""
# DHCP clients ask by the address that the card had when they began. Each is told by a line with its words.
_CLIENTS = "/run/vmfest/clients"


def move_in(
    machines: Machines, settings: DriverSettings, machine: Machine, run: Callable[[str, bytes], object]
) -> bool:
    """Give the guest its addresses, and plug the cards in; False for a machine that needs none of it.

    ``run`` runs shell text as root, with standard input.
    """
    kept = machine.record
    slots = networks.seen_slots(kept.network, kept.nics)
    if not kept.thaw_from or not slots:
        return False
    was = frozen.facts_of(Path(kept.thaw_from)).macs
    with trouble.translated(f"machine {machine.name!r}: its addresses cannot be read"):
        macs = [frozen.mac_of(machine.com, slot) for slot in slots]
    try:
        run(move_script([was[slot] for slot in slots], macs), program())
    except CommandError as error:
        raise ThawError(f"its network cards cannot be given their addresses: {error.message}") from error
    with _plugging_in(machines, settings, machine):
        run(ask_script(), b"")
    return True


@contextmanager
def _plugging_in(machines: Machines, settings: DriverSettings, machine: Machine) -> Iterator[None]:
    """Plug in the cards of a machine that went on from a frozen one; at the end it is as all others."""
    kept = machine.record
    with machines.locked(machine, Deadline(QUICK_S), "be given its network") as session:
        networks.plug_in(settings, session.machine, machine.name, kept.network, kept.nics)
        yield
        behind = networks.nat_slot(kept.network)
        if kept.network != "nat" and behind is not None:
            nat.close_ssh(session.machine, behind)
        session.machine.save_settings()


def plug_in_if_dropped(machines: Machines, settings: DriverSettings, machine: Machine) -> None:
    """Plug in the cards of a machine that is off, as it will boot like any other: its state was dropped."""
    kept = machine.record
    if kept.thaw_from and not networks.is_plugged_in(machine.com, kept.network, kept.nics):
        with _plugging_in(machines, settings, machine):
            pass


# --- what the guest is told ------------------------------------------------------------------------


def move_script(was: Sequence[str], now: Sequence[str]) -> str:
    """A POSIX shell script, run as root: the cards get their own addresses, and lose what they were lent.

    It wants the program on standard input, and needs ``ip`` (iproute2 or busybox) in the guest. The cards are
    to be plugged in then, and `ask_script` to be run.
    """
    moves = [f"move {old} {new}" for old, new in zip(was, now, strict=True)]
    return "\n".join([_MOVE, *moves])


def ask_script() -> str:
    """A POSIX shell script, run as root: who asked DHCP servers for addresses begins anew, as it was."""
    return _ASK


def program() -> bytes:
    """The program that gives a card its address, for Linux on x86-64."""
    return Path(__file__).with_name("card.bin").read_bytes()


_FIND = "\n".join(f"  {line}" for line in find_card('"$1"'))
_MOVE = f"""\
set -e
mkdir -p {_CARD.rpartition("/")[0]} {_CLIENTS.rpartition("/")[0]}
cat > {_CARD}
chmod 755 {_CARD}
: > {_CLIENTS}
end_clients() {{
  for path in /proc/[0-9]*; do
    read -r name < "$path/comm" || continue
    case $name in udhcpc | busybox | dhclient | dhcpcd) ;; *) continue ;; esac
    words=$(tr '\\0' ' ' < "$path/cmdline") || continue
    case " $words" in *dhc*[\\ =i]"$1 "*) ;; *) continue ;; esac
    kill "${{path##*/}}" || continue
    echo "$words" >> {_CLIENTS}
    tries=0
    while [ -d "$path" ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  done
}}
move() {{
{_FIND}
  [ -n "$dev" ] || {{ echo "no network card has the address $1" >&2; exit 1; }}
  end_clients "$dev" 2> /dev/null
  ip address flush dev "$dev"
  ip link set dev "$dev" down
  {_CARD} "$dev" "$(echo "$2" | tr -d :)" || {{ echo "$dev does not take another address" >&2; exit 1; }}
  ip link set dev "$dev" address "$2"
  ip link set dev "$dev" up
}}"""
_ASK = f"""\
while read -r words; do
  $words < /dev/null > /dev/null 2>&1 &
done < {_CLIENTS}
rm {_CLIENTS}"""
