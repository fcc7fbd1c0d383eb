"""What a fresh guest is told about itself and its group: host name, private address, who else is there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.shell import find_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_vmfest.specs import PrivateNic

# Written behind each of our lines in the guest's /etc/hosts, so that they can be told from others' lines.
_MARK = "# vmfest"
_KERNEL_NAME = "/proc/sys/kernel/hostname"


@dataclass(frozen=True)
class Introduction:
    """A node's host name, its private NICs, and the addresses of all nodes of its group by name."""

    hostname: str
    nics: tuple[PrivateNic, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()

    def script(self, was: Sequence[str] = ()) -> str:
        """A POSIX shell script, run as root after every boot; running it again changes nothing.

        ``was`` are the addresses that the NICs have from a template, until they are given their own. What the
        shell can do by itself it does: a program's start takes an emulated guest 10 to 30 ms. For NICs it
        needs ``ip`` (iproute2 or busybox) in the guest, and ``hostname`` where /proc cannot be written to.
        """
        lines = ["set -e", *self._name()]
        for nic, mac in zip(self.nics, was or [nic.mac for nic in self.nics], strict=True):
            lines += _nic(nic, mac)
        return "\n".join(lines)

    def _name(self) -> list[str]:
        hosts: Mapping[str, str] = dict(self.hosts)
        entries = [f"{hosts.get(self.hostname, '127.0.1.1')} {self.hostname} {_MARK}"]
        entries += [f"{ip} {name} {_MARK}" for name, ip in hosts.items() if name != self.hostname]
        text = shlex.quote("\n".join(entries))
        return [
            f"{{ echo {self.hostname} > {_KERNEL_NAME}; }} 2> /dev/null || hostname {self.hostname}",
            f"echo {self.hostname} > /etc/hostname",
            "kept= newline='\n'",
            '[ ! -e /etc/hosts ] || while IFS= read -r line || [ -n "$line" ]; do',
            f'  case $line in *"{_MARK}") ;; *) kept=$kept$line$newline ;; esac',
            "done < /etc/hosts",
            # One write, in place: a container runtime or an administrator may hold the file itself.
            f'printf "%s%s\\n" "$kept" {text} > /etc/hosts',
        ]


def _nic(nic: PrivateNic, was: str) -> list[str]:
    return [
        *find_card(was),
        f'[ -n "$dev" ] || {{ echo "no network interface has the MAC {was}" >&2; exit 1; }}',
        *([f'ip link set dev "$dev" down address {nic.mac}'] if was != nic.mac else []),
        f'ip address replace {nic.address}/{nic.prefix_length} dev "$dev"',
        'ip link set "$dev" up',
    ]
