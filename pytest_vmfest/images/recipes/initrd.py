"""The initial RAM disk of our guests: busybox, the drivers that they may need, and a script.

Distributions' own are made for every machine and take seconds to start under emulation; this one looks for
the few kinds of devices that hypervisors offer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.images.recipes.cpio import Cpio
from pytest_vmfest.images.recipes.kernel import in_order

if TYPE_CHECKING:
    from collections.abc import Mapping

GUEST = Path(__file__).parent / "guest"

# Modules that every guest loads first of all, and those for devices that it finds, by patterns of modaliases.
_ALWAYS = ("crc32c_generic", "ext4", "af_packet", "button", "evdev")
_DRIVERS: dict[str, dict[str, tuple[str, ...]]] = {
    "pci": {
        "pci:v00001AF4*": ("virtio_pci",),
        "pci:v00008086d0000100[4EF]*": ("e1000",),
        "pci:v00001B36d00000011*": ("pvpanic_pci",),  # tells QEMU of a panic
    },
    "virtio": {
        "virtio:d00000001*": ("virtio_net",),
        "virtio:d00000002*": ("virtio_blk",),
        "virtio:d00000003*": ("virtio_console",),
        "virtio:d00000004*": ("virtio_rng",),
        "virtio:d00000008*": ("virtio_scsi", "sd_mod"),
    },
    # Where no virtio disk was found; probing them takes long.
    "disks": {
        "pci:*bc01sc06*": ("ahci", "sd_mod"),
        "pci:v00008086d00007[01]1[01]*": ("ata_piix", "sd_mod"),
    },
}

MODULES = (*_ALWAYS, *(name for table in _DRIVERS.values() for names in table.values() for name in names))
# Gone in newer kernels, where it is part of the kernel itself; and not in every package.
OPTIONAL_MODULES = frozenset({"crc32c_generic", "pvpanic_pci"})

# The second half saves time where a CPU is emulated. Most of all norandmaps does: emulators translate code by
# its address, and without it every start of a program is translated anew (Debian takes three times as long).
COMMAND_LINE = (
    "console=tty0 console=ttyS0 quiet net.ifnames=0 "
    "nokaslr norandmaps mitigations=off noreplace-smp no_timer_check tsc=reliable cryptomgr.notests"
)


def make_initrd(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """The archive; ``modules`` holds at least `MODULES`, as far as they are not part of the kernel."""
    archive = Cpio()
    archive.folders("bin", "dev", "modules", "proc", "root", "sys")
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    for name in ("mount", "sh", "switch_root"):
        archive.link(f"bin/{name}", "busybox")
    archive.file("init", (GUEST / "initrd-init").read_bytes(), 0o755)
    archive.file("modules/always", (" ".join(in_order(_ALWAYS, modules)) + "\n").encode())
    for bus, drivers in _DRIVERS.items():
        archive.file(f"modules/{bus}", driver_table(drivers, modules).encode())
    for name in in_order(MODULES, modules):
        archive.file(f"modules/{name}.ko", modules[name])
    return archive.finish()


def driver_table(drivers: Mapping[str, tuple[str, ...]], modules: Mapping[str, bytes]) -> str:
    """Lines of a modalias pattern and the modules to load for it, dependencies included, in order."""
    lines = ((pattern, *in_order(names, modules)) for pattern, names in drivers.items())
    return "".join(" ".join(line) + "\n" for line in lines)
