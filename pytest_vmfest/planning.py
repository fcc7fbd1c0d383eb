"""From a request and an image model to the plans of nodes: names, sizes, addresses."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.guest import Introduction
from pytest_vmfest.request import VmRequest, node_names
from pytest_vmfest.specs import (
    HardwareModel,
    ImageModel,
    MachineSpec,
    PrivateNic,
    check_label,
    hardware_model,
)
from pytest_vmfest.startup import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

# Private networks are closed worlds: every group can have the same addresses. A group has 200 nodes at most.
_PRIVATE_NET = "10.77.0."
_FIRST_HOST = 10


def plan_node(
    request: VmRequest, model: ImageModel, name: str, tags: Mapping[str, str], machine: str | None = None
) -> Plan:
    """The plan of a node called ``name``; ``machine`` is its machine's own name, if that is to be chosen."""
    check_label(name, "node name")
    spec = plan_machine(request, model, machine or fresh_name(name), tags)
    return Plan(spec, Introduction(name), name, _script(request))


def plan_group(request: VmRequest, model: ImageModel, network: str, tags: Mapping[str, str]) -> list[Plan]:
    """The plans of all nodes of a group, which know each other's addresses on the private ``network``."""
    if request.nodes is None:
        raise ConfigurationError("a group of how many nodes?", hint="say nodes=2, or by role: {'db': 1}")
    names = node_names(request.nodes)
    if isinstance(request.hardware, HardwareModel) and request.hardware.mac and len(names) > 1:
        raise ConfigurationError(
            f"hardware {request.hardware.name!r} has a mac, which {len(names)} nodes cannot share",
            hint="leave it out, and each gets its own",
        )
    addresses = {name: f"{_PRIVATE_NET}{_FIRST_HOST + i}" for i, (_, name) in enumerate(names)}
    script = _script(request)
    plans = []
    for role, name in names:
        nic = PrivateNic(network, mac=_mac(), address=addresses[name])
        tagged = {**tags, "group": network, "node": name}
        spec = plan_machine(request, model, fresh_name(name), tagged, (nic,))
        plans.append(Plan(spec, Introduction(name, (nic,), tuple(addresses.items())), role, script))
    return plans


def plan_machine(
    request: VmRequest,
    model: ImageModel,
    name: str,
    tags: Mapping[str, str],
    nics: tuple[PrivateNic, ...] = (),
) -> MachineSpec:
    """The spec of a machine; what the request leaves open comes from the image, then from the defaults."""
    hardware = hardware_model(request.hardware or model.hardware or "micro")
    return MachineSpec(
        name=name,
        image=model,
        hardware=hardware.at_least(request.min_ram_mib, request.min_cores),
        network=request.network or model.network or "local",
        nics=nics,
        permanent=bool(request.permanent),
        tags=tags,
    )


def fresh_name(name: str) -> str:
    """A name that nothing else has: ``name``, cut to leave room, and 32 random bits."""
    return f"{name[:50].rstrip('-')}-{secrets.token_hex(4)}"


def _mac() -> str:
    """A random MAC in the range that QEMU and KVM use for virtual interfaces."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def _script(request: VmRequest) -> str | None:
    """The text of the request's init script."""
    script = request.init_script
    if script is None or isinstance(script, str):
        return script
    try:
        return Path(script).read_text()
    except OSError as error:
        raise ConfigurationError(f"init_script {script} cannot be read: {error.strerror}") from None
