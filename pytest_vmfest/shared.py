"""Machines that all xdist workers of a run use: made by the first that needs them, found by the others."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from pytest_vmfest.errors import GroupStartError, StartError, StoreError
from pytest_vmfest.folders import make_private, writing_to
from pytest_vmfest.group import NodeGroup
from pytest_vmfest.guest import Introduction
from pytest_vmfest.instance import Instance
from pytest_vmfest.ledger import Ledger
from pytest_vmfest.node import Node
from pytest_vmfest.specs import PrivateNic

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_vmfest.drivers.base import Driver
    from pytest_vmfest.specs import ImageModel


def shared_nodes(
    driver: Driver,
    run: str,
    purpose: str,
    model: ImageModel,
    launch: Callable[[], NodeGroup],
    *,
    connect_timeout_s: float,
) -> NodeGroup:
    """The nodes that the workers of ``run`` share for ``purpose``, by ``launch`` if nobody has made them.

    To destroy the group only ends this worker's connections. Whoever asks while they are being made waits; if
    the maker dies meanwhile, the next one makes them. Raises what ``launch`` raised, also for those who come
    later: a start that failed is not tried by each worker.
    """
    key = hashlib.sha256(purpose.encode()).hexdigest()[:16]
    ledger = Ledger.shared(driver.settings.home, run, driver.name)
    with writing_to(ledger.path):
        make_private(ledger.path.parent)
    with FileLock(ledger.lock_file):
        found = ledger.what_is_shared(key)
        if found is None:
            try:
                nodes = list(launch().values())
            except (StartError, GroupStartError) as error:
                with suppress(StoreError):  # there is no ledger, if not even a guardian could be started
                    ledger.share(key, {"error": str(error)})
                raise
            ledger.share(key, {"nodes": [_to_json(node) for node in nodes]})
            return _own_connections(nodes)
    if "error" in found:
        raise GroupStartError(f"another worker could not start it:\n{found['error']}", failures={})
    return _own_connections([_from_json(data, driver, model, connect_timeout_s) for data in found["nodes"]])


def _own_connections(nodes: list[Node]) -> NodeGroup:
    def leave() -> None:
        for node in nodes:
            node.disconnect()

    return NodeGroup(nodes, leave)


def _to_json(node: Node) -> dict[str, Any]:
    return {
        "machine": node.instance.name,
        "role": node.role,
        "introduction": asdict(node.introduction),
    }


def _from_json(data: dict[str, Any], driver: Driver, model: ImageModel, connect_timeout_s: float) -> Node:
    told = data["introduction"]
    introduction = Introduction(
        told["hostname"],
        tuple(PrivateNic(**nic) for nic in told["nics"]),
        tuple((name, address) for name, address in told["hosts"]),
    )
    instance = Instance(driver, data["machine"], lambda: model)
    return Node(instance, introduction, role=data["role"], connect_timeout_s=connect_timeout_s)
