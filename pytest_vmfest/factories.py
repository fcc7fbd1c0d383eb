"""Factories of fixtures with a scope of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.fixtures import run_of
from pytest_vmfest.markers import image_id, marked_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pytest_vmfest.request import VmRequest
    from pytest_vmfest.run import Run
    from pytest_vmfest.server import Server
    from pytest_vmfest.specs import ImageModel

Scope = Literal["function", "class", "module", "package", "session"]
_GROUPED = "vmfest_scope"
_SCOPES = ("function", "class", "module", "package", "session")


def instance_fixture(
    scope: Scope = "function",
    *,
    reset: bool = False,
    shared: bool = False,
    xdist_group: bool = True,
    name: str | None = None,
    **arguments: Any,
) -> Any:
    """A fixture that gives one machine, a `Node`, to all tests of a scope.

    >>> box = instance_fixture(scope="module", image="tiny", reset=True)

    ``reset`` makes it pristine before each test that names it (but the first): disk and memory go back to
    where they were when the fixture was made. A test that gets it by ``request.getfixturevalue`` finds it as
    it is. ``name`` is the fixture's name if it is not the variable's. The other arguments are those of the
    ``vm`` marker; what is not given comes from markers around the scope, then from the options. Raises
    `ConfigurationError` for a wrong argument.

    With ``shared``, all xdist workers of a run use the same machine: the first that needs it makes it, and it
    is destroyed when the last has ended. It cannot be combined with ``reset``. Otherwise, where xdist runs
    with ``--dist loadgroup``, the tests that use it go to one worker, so that there is one machine; with
    ``xdist_group=False`` each worker that has some of them makes its own.
    """
    grouped = xdist_group and not shared
    return _fixture("instance_fixture", scope, reset, shared, grouped, name, arguments, lambda run: run.node)


def group_fixture(
    scope: Scope = "function",
    *,
    reset: bool = False,
    shared: bool = False,
    xdist_group: bool = True,
    name: str | None = None,
    **arguments: Any,
) -> Any:
    """A fixture that gives a group of machines, a `NodeGroup`, to all tests of a scope.

    >>> cluster = group_fixture(scope="session", image="tiny", nodes={"db": 1, "web": 2})

    Arguments as for `instance_fixture`; ``nodes`` is required here or in a marker around the scope.
    """
    grouped = xdist_group and not shared
    return _fixture("group_fixture", scope, reset, shared, grouped, name, arguments, lambda run: run.group)


def machine_group(item: pytest.Item) -> str:
    """What the tests have in common that use the same machines of a wider scope as ``item``; else empty.

    That is the first such fixture of the test with the place for which it is made.
    """
    info = getattr(item, "_fixtureinfo", None)
    for name, definitions in (info.name2fixturedefs if info else {}).items():
        scope = getattr(definitions[-1].func, _GROUPED, None)
        if scope is not None:
            places = {
                "class": item.nodeid.rpartition("::")[0],
                "module": item.nodeid.partition("::")[0],
                "package": item.nodeid.partition("::")[0].rpartition("/")[0],
                "session": "",
            }
            return f"{name} {places[scope]}".strip()
    return ""


def _fixture(
    factory: str,
    scope: Scope,
    reset: bool,
    shared: bool,
    grouped: bool,
    name: str | None,
    arguments: dict[str, Any],
    holder: Callable[[Run], Callable[..., AbstractContextManager[Any]]],
) -> Any:
    if scope not in _SCOPES:
        raise ConfigurationError(
            f"{factory}: scope={scope!r} is not valid", hint=f"expected one of {', '.join(_SCOPES)}"
        )
    if shared and reset:
        raise ConfigurationError(
            f"{factory}: shared=True and reset=True exclude each other: a reset would take the machines from "
            "under the tests that run on other workers",
            hint="leave one of them out",
        )
    if shared and scope == "function":
        raise ConfigurationError(
            f"{factory}: shared=True needs a wider scope than one test", hint="say scope='session'"
        )
    from pytest_vmfest.request import VmRequest

    said = VmRequest.parse(arguments, where=factory)
    if factory == "instance_fixture" and said.nodes is not None:
        raise ConfigurationError(
            f"{factory}: nodes={said.nodes!r}, but it makes one machine", hint="for several use group_fixture"
        )

    def machines(request: pytest.FixtureRequest, default_image: Any) -> Iterator[Any]:
        run = run_of(request.config)
        fixture = request.fixturename or factory
        vm = marked_request(request.node, run.settings).merged(said)
        if factory == "group_fixture" and vm.nodes is None:
            raise ConfigurationError(f"fixture {fixture!r}: how many nodes?", hint="say nodes=2, or by role")
        scope_node = request.node
        model: ImageModel = run.image(
            _one_image(request, vm, default_image), vm, fixture=fixture, scope=scope_node
        )
        pristine = reset and scope != "function"
        # Of two fixtures of one name, each has its own: they stand in different places.
        place = getattr(getattr(request, "_fixturedef", None), "baseid", "")
        purpose = f"{place}::{fixture} for {scope_node.nodeid}: {vm}" if shared else ""
        with holder(run)(
            vm, model, fixture=fixture, scope=scope_node, reset=pristine, shared=purpose
        ) as held:
            yield held

    def fixture(function: Callable[..., Any], params: Sequence[Any] | None) -> Any:
        if grouped and scope != "function":
            setattr(function, _GROUPED, scope)
        return pytest.fixture(scope=scope, params=params, ids=image_id, name=name)(function)

    if said.images:

        def on_own_image(request: pytest.FixtureRequest, vm_server: Server) -> Iterator[Any]:
            """Virtual machines made by a factory of pytest-vmfest."""
            yield from machines(request, None)

        return fixture(on_own_image, said.images if len(said.images) > 1 else None)

    def on_default_image(request: pytest.FixtureRequest, _vm_default_image: Any) -> Iterator[Any]:
        """Virtual machines made by a factory of pytest-vmfest."""
        yield from machines(request, _vm_default_image)

    return fixture(on_default_image, None)


def _one_image(request: pytest.FixtureRequest, vm: VmRequest, default_image: Any) -> Any:
    """The parameter, else what the factory or a marker around the scope says, else the default."""
    if hasattr(request, "param"):
        return request.param
    if len(vm.images) > 1:
        raise ConfigurationError(
            f"fixture {request.fixturename!r}: a marker gives several images",
            hint="name them in the factory: a fixture of a wide scope cannot follow its tests' markers",
        )
    return vm.images[0] if vm.images else default_image
