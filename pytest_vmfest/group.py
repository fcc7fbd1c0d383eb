"""Nodes that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_vmfest.node import Node
    from pytest_vmfest.remote import CommandResult

T = TypeVar("T")


class NodeGroup(Mapping[str, "Node"]):
    """The nodes of a group by name; they share a private network and know each other by name.

    >>> from pytest_vmfest import Server
    >>> with Server(driver="fake").launch_group({"db": 1, "web": 2}, image="tiny") as group:
    ...     list(group), [node.name for node in group.role("web")]
    (['db-0', 'web-0', 'web-1'], ['web-0', 'web-1'])
    """

    def __init__(self, nodes: Sequence[Node], destroy: Callable[[], None]) -> None:
        """Hold ``nodes``; ``destroy`` removes them and their network."""
        self._nodes = {node.name: node for node in nodes}
        self._destroy = destroy

    def __getitem__(self, name: str) -> Node:
        """The node called ``name``; the KeyError lists the names there are."""
        try:
            return self._nodes[name]
        except KeyError:
            raise KeyError(f"no node {name!r}; there are {', '.join(self._nodes)}") from None

    def __iter__(self) -> Iterator[str]:
        """Names of the nodes, by role and number."""
        return iter(self._nodes)

    def __len__(self) -> int:
        """How many nodes."""
        return len(self._nodes)

    def __repr__(self) -> str:
        """``<NodeGroup db-0, web-0, web-1>``."""
        return f"<NodeGroup {', '.join(self)}>"

    def __enter__(self) -> NodeGroup:
        """Return the group itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Destroy all nodes and their network."""
        self.destroy()

    def role(self, name: str) -> list[Node]:
        """The nodes of a role, by number; a KeyError lists the roles there are."""
        found = [node for node in self.values() if node.role == name]
        if not found:
            roles = dict.fromkeys(node.role for node in self.values())
            raise KeyError(f"no role {name!r}; there are {', '.join(roles)}")
        return found

    def run(
        self, cmd: str | Sequence[str], *, check: bool = False, timeout_s: float | None = None
    ) -> dict[str, CommandResult]:
        """Run a command on all nodes at once; results by node name. See `Node.run`."""
        __tracebackhide__ = True
        return self.each(lambda node: node.run(cmd, check=check, timeout_s=timeout_s))

    def each(self, action: Callable[[Node], T]) -> dict[str, T]:
        """Call ``action`` with every node, all at once; results by node name.

        When it fails on one node, its error is raised as it is; on several, an ExceptionGroup of them,
        after all have ended.
        """
        __tracebackhide__ = True
        with ThreadPoolExecutor(len(self), thread_name_prefix="vmfest-group") as pool:
            futures = {name: pool.submit(action, node) for name, node in self.items()}
        errors = [error for future in futures.values() if (error := future.exception())]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup(f"{len(errors)} of {len(self)} nodes failed", errors)
        return {name: future.result() for name, future in futures.items()}

    def destroy(self) -> None:
        """Remove every trace of all nodes and of their network."""
        self._destroy()
