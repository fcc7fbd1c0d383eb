"""``vmfest image``: the image store."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from pytest_vmfest.cli import show
from pytest_vmfest.cli.setup import examples, json_option, with_setup
from pytest_vmfest.cli.units import size
from pytest_vmfest.errors import DriverUnavailableError

if TYPE_CHECKING:
    from pytest_vmfest.cli.setup import Setup
    from pytest_vmfest.specs import ImageModel


@click.group(
    epilog=examples(
        "vmfest image list",
        "vmfest image add ~/Downloads/web.vdi --metadata username=admin --metadata password=secret",
    )
)
def image() -> None:
    """List, add, build, verify and remove images.

    Machines are cloned from images. An image in the store never changes: each machine writes to a layer of
    its own.
    """


@image.command("list", epilog=examples("vmfest image list"))
@json_option
@with_setup("home")
def list_images(setup: Setup, json_: bool) -> None:
    """List the installed images, and those that can be built here."""
    from pytest_vmfest.images.recipes import RECIPES

    models = setup.server(show.lines).images.list()
    installed = {model.name for model in models}
    if json_:
        show.as_json(
            {
                "images": [_row(model) for model in models],
                "recipes": [
                    {"name": r.name, "description": r.description, "installed": r.name in installed}
                    for r in RECIPES.values()
                ],
            }
        )
        return
    if models:
        show.table(
            ("image", "system", "format", "on disk", "description"),
            [
                (model.name, _system(model), model.format, size(_bytes_on_disk(model)), model.description)
                for model in models
            ],
        )
    else:
        show.note(f"No image is installed in {setup.home}. Add one: vmfest image add PATH|URL")
    missing = [recipe for name, recipe in RECIPES.items() if name not in installed]
    if missing:
        click.echo("\nCan be built, also on demand: vmfest image build NAME")
        click.echo(show.aligned([(recipe.name, recipe.description) for recipe in missing], indent="  "))


@image.command("show", epilog=examples("vmfest image show tiny"))
@click.argument("name")
@json_option
@with_setup("home")
def show_image(setup: Setup, name: str, json_: bool) -> None:
    """Show all that is known of an image, but for its passwords."""
    row = _row(setup.server().images.get(name))
    if json_:
        show.as_json(row)
        return
    row["size"] = size(row["size"])
    told = [(key.replace("_", " "), _text(value)) for key, value in row.items() if value is not None]
    click.echo(show.aligned(told))


@image.command(
    "add",
    epilog=examples(
        "vmfest image add web.vdi --metadata username=admin --metadata password=secret",
        "vmfest image add https://example.org/web.qcow2 --name web --sha256 5f2a…",
    ),
)
@click.argument("source")
@click.option(
    "--name", metavar="NAME", help="What to call it.  [default: the file's name without its ending]"
)
@click.option("--sha256", metavar="HEX", help="The digest that the file must have.")
@click.option("--sha512", metavar="HEX", help="The digest that the file must have.")
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="What is to be known of it: username, password, private_key, os_family, os_version, hardware… "
    "May be given several times; goes over what a file beside the image says.",
)
@with_setup("home")
def add_image(
    setup: Setup,
    source: str,
    name: str | None,
    sha256: str | None,
    sha512: str | None,
    pairs: tuple[str, ...],
) -> None:
    """Install a disk image from a path or a URL.

    SOURCE is one file, here or behind http(s): qcow2, vdi, vmdk, or raw (called .raw or .img).
    """
    metadata = dict(_pair(text) for text in pairs)
    with show.progress() as progress:
        model = setup.server(progress).images.add(
            source, name=name, sha256=sha256, sha512=sha512, metadata=metadata
        )
    _tell_installed(model)


@image.command("build", epilog=examples("vmfest image build tiny"))
@click.argument("recipe")
@click.option("--name", metavar="NAME", help="What to call it.  [default: the recipe's name]")
@click.option("--force", is_flag=True, help="Make it anew, in place of the one that is there.")
@with_setup("home", "driver")
def build_image(setup: Setup, recipe: str, name: str | None, force: bool) -> None:
    """Make an image on this machine by a recipe.

    RECIPE is one of those that vmfest image list shows; vmfest doctor tells what they need. Packages are
    taken from the distribution's servers, and no root is needed. An image that the recipe has made before
    stays as it is, unless --force is given.
    """
    users = _users(setup, name or recipe) if force else []
    with show.progress() as progress:
        model = setup.server(progress).images.build(recipe, name=name, force=force, users=users)
    _tell_installed(model)


@image.command("verify", epilog=examples("vmfest image verify tiny"))
@click.argument("name")
@with_setup("home")
def verify_image(setup: Setup, name: str) -> None:
    """Check that an image's files are as they were installed."""
    with show.progress() as progress:
        setup.server(progress).images.verify(name)
    click.echo(f"{name}: all files are as they were installed")


@image.command("remove", epilog=examples("vmfest image remove tiny"))
@click.argument("name")
@with_setup("home", "driver")
def remove_image(setup: Setup, name: str) -> None:
    """Remove an image, unless a machine is cloned from it."""
    setup.server().images.remove(name, users=_users(setup, name))
    click.echo(f"{name}: removed")


def _users(setup: Setup, name: str) -> list[str]:
    """The machines that are clones of the image; none where no hypervisor could run any."""
    with setup.server() as server:
        try:
            return [info.name for info in server.driver.machines() if info.image == name]
        except DriverUnavailableError:
            return []


def _pair(text: str) -> tuple[str, Any]:
    """Key and value; the store checks what they say."""
    from pytest_vmfest.specs import ImageModel, Login

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--metadata")
    flags = [field.name for kind in (ImageModel, Login) for field in fields(kind) if field.type == "bool"]
    if key in flags and value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    return key, value


def _tell_installed(model: ImageModel) -> None:
    click.echo(f"{model.name}: installed, {model.format}, {size(_bytes_on_disk(model))}")
    show.note(f"Boot a machine from it: vmfest up {model.name}")


def _row(model: ImageModel) -> dict[str, Any]:
    from pytest_vmfest.images.model_file import read_model

    login = model.login
    return {
        "name": model.name,
        "description": model.description,
        "os_family": model.os_family,
        "os_version": model.os_version,
        "os_64_bit": model.os_64_bit,
        "os_type": model.os_type,
        "packager": model.packager,
        "firmware": model.firmware,
        "hardware": model.hardware,
        "network": model.network,
        "username": login.username,
        "private_key": str(login.private_key) if login.private_key else None,
        "host_key": login.host_key,
        "no_sudo": login.no_sudo,
        "source": read_model(model.disk.parent).origin.source,
        "disk": str(model.disk),
        "format": model.format,
        "size": _bytes_on_disk(model),
        "sha256": model.sha256,
    }


def _system(model: ImageModel) -> str:
    return " ".join(word for word in (model.os_family, model.os_version) if word) or "-"


def _bytes_on_disk(model: ImageModel) -> int:
    # A sparse file takes less room than its length says.
    return model.disk.stat().st_blocks * 512


def _text(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
