"""The hardware map: what a spec says of a machine's hardware, as VirtualBox's settings.

The network cards are `networks`' matter.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vmfest.devices import Dvd, ExistingDisk, NewDisk
from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.errors import ConfigurationError, clean_up_after
from pytest_vmfest.waiting import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from virtualbox.library import IMachine, IMedium

    from pytest_vmfest.devices import Device, StorageController
    from pytest_vmfest.drivers.virtualbox.connection import Connection
    from pytest_vmfest.specs import MachineSpec

DISK_CONTROLLER = "disk"
"""The SATA controller that has the image's own disk, on its port 0."""

# Enough for 1920x1080 in all colours; VBoxVGA is what guests without a driver of VirtualBox's own draw on.
_VRAM_MIB = 16
_BOOT_POSITIONS = 4
# FirmwareBootMenuMode_Disabled; before 7.1, BIOSBootMenuMode_Disabled.
_NO_BOOT_MENU = 0
_CREATE_TIMEOUT_S = 60.0
_OPENED_KEY = "vmfest/media"


def os_type(connection: Connection, spec: MachineSpec) -> str:
    """VirtualBox's name of the guest system; `ConfigurationError` if this version does not know it."""
    wanted = spec.os_type
    if wanted is None:
        return "Linux_64" if spec.image.os_64_bit else "Linux"
    with trouble.translated(f"machine {spec.name!r}: the known guest systems cannot be listed"):
        known = [str(kind.id_p) for kind in connection.vbox.guest_os_types]
    if wanted in known:
        return wanted
    start = wanted.partition("_")[0][:3].lower()
    near = [name for name in known if name.lower().startswith(start)] or known
    raise ConfigurationError(
        f"machine {spec.name!r}: os_type {wanted!r} is not known to VirtualBox {connection.version}",
        hint=f"it knows: {', '.join(near)}",
    )


def configure(connection: Connection, machine: IMachine, spec: MachineSpec) -> None:
    """Set up a new machine that is not registered yet. Raises `DriverError` with VirtualBox's own words."""
    hardware, api, constants = spec.hardware, connection.api, connection.constants
    with trouble.translated(f"machine {spec.name!r}: its hardware cannot be set up"):
        machine.memory_size = hardware.memory_mib
        machine.cpu_count = hardware.cpus
        machine.description = hardware.description
        graphics = api.graphics(machine)
        graphics.graphicsControllerType = constants.GraphicsControllerType_VBoxVGA
        graphics.VRAMSize = hardware.vram_mib or _VRAM_MIB
        board = api.board(machine)
        board.IOAPICEnabled = True
        # The firmware would show its logo for seconds, and wait for somebody to choose what to boot.
        board.logoFadeIn = board.logoFadeOut = False
        board.bootMenuMode = _NO_BOOT_MENU
        api.clock(machine).RTCUseUTC = True
        api.audio(machine).enabled = False
        efi = spec.firmware == "efi"
        api.firmware(machine).firmwareType = (
            constants.FirmwareType_EFI if efi else constants.FirmwareType_BIOS
        )
        if _needs_many(hardware.controllers):
            api.clock(machine).chipsetType = constants.ChipsetType_ICH9
        _set_boot_order(machine, hardware.boot_order or ("disk",))
        _add_controller(machine, DISK_CONTROLLER, "sata", 1)
        for controller in hardware.controllers:
            _add_controller(machine, controller.name, controller.bus, len(controller.devices))


def attach(connection: Connection, machine: IMachine, spec: MachineSpec, folder: Path) -> None:
    """Give a registered machine, which is write-locked, its further disks, DVDs and shared folders.

    New disks are made in the machine's ``folder``. Each device is saved at once: what is attached and not
    saved is not told when the machine is unregistered. Shared folders are for the caller to save. Raises
    `ConfigurationError` for files that are not there, `DriverError`, `StoreError`.
    """
    doing = f"machine {spec.name!r}"
    for controller in spec.hardware.controllers:
        for index, device in enumerate(controller.devices):
            where = f"{doing}: controller {controller.name!r}, device {index}"
            with trouble.translated(where):
                new_file = folder / f"{controller.name}-{index}.vdi"
                medium = _medium(connection, machine, device, new_file, where)
                try:
                    _plug_in(machine, controller, index, device, medium)
                except BaseException as error:
                    if medium is not None and isinstance(device, NewDisk):
                        clean_up_after(error, partial(_delete, connection, medium))
                    raise
                machine.save_settings()
    for shared in spec.hardware.shared_folders:
        if not shared.path.is_dir():
            raise ConfigurationError(
                f"{doing}: shared folder {shared.name!r}: there is no folder {shared.path}"
            )
        with trouble.translated(f"{doing}: shared folder {shared.name!r}"):
            # The guest mounts it by hand: where to is nothing that the host should say.
            machine.create_shared_folder(shared.name, str(shared.path), not shared.read_only, False, "")


def opened_media(machine: IMachine) -> list[Path]:
    """The user's files that VirtualBox did not know before machines of ours were given them."""
    try:
        return [Path(path) for path in json.loads(machine.get_extra_data(_OPENED_KEY))]
    except ValueError:
        return []


def _needs_many(controllers: Sequence[StorageController]) -> bool:
    """Whether the usual chipset (PIIX3), which takes one controller of each bus, is not enough."""
    buses = Counter(controller.bus for controller in controllers)
    buses["sata"] += 1
    return max(buses.values()) > 1


def _set_boot_order(machine: IMachine, order: Sequence[str]) -> None:
    from virtualbox.library import DeviceType

    kinds = {
        "disk": DeviceType.hard_disk,
        "dvd": DeviceType.dvd,
        "floppy": DeviceType.floppy,
        "network": DeviceType.network,
    }
    for position in range(_BOOT_POSITIONS):
        kind = kinds[order[position]] if position < len(order) else DeviceType.null
        machine.set_boot_order(position + 1, kind)


def _add_controller(machine: IMachine, name: str, bus: str, devices: int) -> None:
    from virtualbox.library import StorageBus

    controller = machine.add_storage_controller(name, getattr(StorageBus, bus))
    if bus in ("sata", "sas"):  # the others have a fixed number of ports
        controller.port_count = max(devices, 1)


def _medium(
    connection: Connection, machine: IMachine, device: Device, new_file: Path, where: str
) -> IMedium | None:
    from virtualbox.library import AccessMode, DeviceType, MediumVariant

    vbox = connection.vbox
    if isinstance(device, NewDisk):
        if new_file in _known(vbox.hard_disks):  # what a killed process had attached and not saved
            new_file = new_file.with_stem(f"{new_file.stem}-{secrets.token_hex(4)}")
        medium = vbox.create_medium("VDI", str(new_file), AccessMode.read_write, DeviceType.hard_disk)
        progress = medium.create_base_storage(device.size_mib * 1024 * 1024, [MediumVariant.standard])
        connection.wait(progress, Deadline(_CREATE_TIMEOUT_S), f"{where}: a new disk cannot be made")
        return medium
    if device.path is None:
        return None
    if not device.path.is_file():
        raise ConfigurationError(f"{where}: there is no file {device.path}")
    with trouble.translated(f"{where}: {device.path} cannot be opened"):
        _note_opening(connection, machine, device.path.absolute())
        if isinstance(device, ExistingDisk):
            return vbox.open_medium(str(device.path), DeviceType.hard_disk, AccessMode.read_write, False)
        return vbox.open_medium(str(device.path), DeviceType.dvd, AccessMode.read_only, False)


def _note_opening(connection: Connection, machine: IMachine, path: Path) -> None:
    """Note a file that is to be closed after the machine: not one that the user had opened before."""
    vbox, own = connection.vbox, opened_media(machine)
    if path in own:
        return
    if path.resolve() in _known((*vbox.hard_disks, *vbox.dvd_images)) and not any(
        other.accessible and path in opened_media(other) for other in vbox.machines
    ):
        return
    machine.set_extra_data(_OPENED_KEY, json.dumps([str(each) for each in (*own, path)]))


def _known(media: Iterable[IMedium]) -> Iterator[Path]:
    """The files of media and of all that stand on them."""
    for medium in media:
        yield Path(str(medium.location)).resolve()
        yield from _known(medium.children)


def _delete(connection: Connection, medium: IMedium) -> None:
    connection.wait(medium.delete_storage(), Deadline(_CREATE_TIMEOUT_S), "a new disk cannot be removed")


def _plug_in(
    machine: IMachine, controller: StorageController, index: int, device: Device, medium: Any
) -> None:
    from virtualbox.library import DeviceType

    # IDE has two devices on each of its two ports, the others have one.
    port, slot = divmod(index, 2) if controller.bus == "ide" else (index, 0)
    kind = DeviceType.dvd if isinstance(device, Dvd) else DeviceType.hard_disk
    if medium is None:
        machine.attach_device_without_medium(controller.name, port, slot, kind)
    else:
        machine.attach_device(controller.name, port, slot, kind, medium)
