"""The image store: named, immutable image models in the user's cache folder."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pytest_vmfest.errors import (
    ConfigurationError,
    ImageExistsError,
    ImageInUseError,
    ImageInvalidError,
    ImageNotFoundError,
)
from pytest_vmfest.images.assembly import assemble, seal
from pytest_vmfest.images.folder import StoreFolder
from pytest_vmfest.images.metadata import check_metadata
from pytest_vmfest.images.model_file import Installed, Origin, read_model, write_model
from pytest_vmfest.images.select import select
from pytest_vmfest.images.sources import looks_like_source, open_source
from pytest_vmfest.images.sparse import file_digest
from pytest_vmfest.progress import Step, silent
from pytest_vmfest.specs import check_image_name

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_vmfest.images.recipes import Recipe
    from pytest_vmfest.images.sources import Source
    from pytest_vmfest.progress import Progress
    from pytest_vmfest.specs import Identity, ImageModel

_DIGEST_DIGITS = {"sha256": 64, "sha512": 128}
_REINSTALL = "remove the image and install it again: vmfest image remove"


class ImageStore:
    """The image models in ``home/images``, one folder each.

    ``identity`` gives the store's keys and is asked when a recipe is built. Processes and threads may use one
    store at once: what two of them want to install is installed by one, the other waits. An operation that
    fails, or whose process is killed, leaves the store as it was. All operations raise `StoreError` when the
    folder cannot be used or is full.

    >>> store = ImageStore(Path.home() / ".cache/vmfest", identity=…)
    >>> store.add("debian-6.0.2.1-64bit-v0.3.vdi", metadata={"username": "vmfest", "password": "vmfest"}).name
    'debian-6.0.2.1-64bit-v0.3'
    """

    def __init__(self, home: Path, identity: Callable[[], Identity], progress: Progress = silent) -> None:
        """Remember the place; nothing is created before the first change."""
        self.home = home.absolute()
        self._identity = identity
        self._progress = progress
        self._folder = StoreFolder(self.home, progress)

    # --- looking -----------------------------------------------------------------------------------

    def names(self) -> builtins.list[str]:
        """The names of the installed models, in alphabetical order."""
        return self._folder.names()

    def list(self) -> builtins.list[ImageModel]:
        """The installed models by name. A damaged one is left out, and told of as progress."""
        return [installed.model for installed in self._all()]

    def get(self, name: str) -> ImageModel:
        """The installed model ``name``; `ImageNotFoundError` tells what there is and how to add more."""
        return self._get(name).model

    def resolve(self, selector: str | os.PathLike[str] | Mapping[str, Any]) -> ImageModel:
        """The model that a test asks for, installed now if need be.

        ``selector`` is the name of a model; a template (see `select`); a path or an http(s) URL, which is
        added under the name of its file; or a recipe's name, which is built. A path whose file or metadata
        have changed since, and a URL whose name another image has, are added under a name with eight digits
        more, so that an old model is never taken for a new one.

        Errors: `ConfigurationError`, `ImageNotFoundError`, and those of `add` and `build`.
        """
        if isinstance(selector, Mapping):
            return select(self.list(), selector, hint=_how_to_install())
        if not isinstance(selector, str | os.PathLike) or not os.fspath(selector):
            raise ConfigurationError(
                f"{selector!r} is no image", hint="give a name, a path, a URL or a template"
            )
        if isinstance(selector, str) and selector in self.names():
            return self.get(selector)
        if looks_like_source(selector):
            return self._resolve_source(open_source(selector))
        name = cast("str", selector)
        return self.build(name) if name in _recipes() else self.get(name)

    def verify(self, name: str) -> None:
        """Compare the digests of a model's files with those of its installation.

        Raises `ImageInvalidError` that names the file, and `ImageNotFoundError`.
        """
        installed = self._get(name)
        hint = f"{_REINSTALL} {name}"
        key = installed.model.login.private_key
        if key is not None and not key.is_file():
            raise ImageInvalidError(f"{key}, the key to log in with, is missing", hint=hint)
        for file, expected in installed.digests.items():
            path = self._folder.images / name / file
            with self._folder.errors():
                if not path.is_file():
                    raise ImageInvalidError(f"{path} is missing", hint=hint)
                found = self._digest(name, path)
            if found != expected:
                raise ImageInvalidError(
                    f"{path} has changed: its sha256 is {found}, and was {expected}", hint=hint
                )

    # --- changing ----------------------------------------------------------------------------------

    def add(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        sha256: str | None = None,
        sha512: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ImageModel:
        """Install the disk image at a path or an http(s) URL.

        It must be one file: qcow2, vdi, vmdk, or raw (called .raw or .img). ``name`` is the file's without
        its ending, unless given. A digest that is given is checked on the bytes that are installed.
        ``metadata`` is put over what a file beside the image says: ``a.toml``, ``a.vdi.meta`` or ``a.meta``
        for ``a.vdi``.

        Errors: `ImageExistsError`, `ImageInvalidError`, `ImageFetchError`, `ImageNotFoundError` for a file
        that is not there, and `ConfigurationError` for name, digests and metadata.
        """
        digests = _check_digests({"sha256": sha256, "sha512": sha512})
        checked = check_metadata(metadata or {}, "metadata")
        opened = open_source(source)
        name = _check_name(name or opened.name, opened)
        taken = self._find(name)
        if taken is not None:
            raise _exists(taken)
        return self._take_in(opened, name, digests, checked)

    def build(
        self, recipe: str, *, name: str | None = None, force: bool = False, users: Sequence[str] = ()
    ) -> ImageModel:
        """Make a model on this machine by a recipe; one that the recipe has made before is returned as it is.

        ``force`` makes it anew and puts it in the old one's place, unless ``users`` says which instances
        still run on that (`ImageInUseError`).

        Errors: `ImageBuildError`, `ImageExistsError` when another image has the name, `ConfigurationError`.
        """
        known = _recipes()
        if recipe not in known:
            raise ConfigurationError(f"unknown recipe {recipe!r}", hint=f"known: {', '.join(known)}")
        name = check_image_name(name or recipe)
        before = self._age(name)
        if not force and (installed := self._find(name)) is not None:
            return _made_by(recipe, installed)
        if before is not None and users:
            raise _in_use(name, users)
        with self._folder.hold(name):
            # Another process may have built it while this one waited.
            if self._age(name) != before and (installed := self._find(name)) is not None:
                return _made_by(recipe, installed)
            return self._install(name, lambda folder: self._build_in(folder, name, known[recipe]))

    def remove(self, name: str, users: Sequence[str] = ()) -> None:
        """Remove a model, also a damaged one.

        ``users`` are the instances that still run on it: any makes it `ImageInUseError`. Raises
        `ImageNotFoundError` if there is no such model.
        """
        if check_image_name(name) not in self.names():
            raise self._not_found(name)
        if users:
            raise _in_use(name, users)
        with self._folder.hold(name):
            if name in self.names():
                self._folder.remove(name)

    # --- the parts of the above --------------------------------------------------------------------

    def _find(self, name: str) -> Installed | None:
        folder = self._folder.images / name
        with self._folder.errors():
            try:
                if folder.is_dir():
                    return read_model(folder)
            except ImageInvalidError:
                # Removed while it was read?
                if folder.is_dir():
                    raise
            if not self._folder.being_replaced(name):
                return None
        with self._folder.hold(name):
            return self._find(name)

    def _get(self, name: str) -> Installed:
        installed = self._find(check_image_name(name))
        if installed is None:
            raise self._not_found(name)
        return installed

    def _all(self) -> builtins.list[Installed]:
        found = []
        for name in self.names():
            try:
                installed = self._find(name)
            except ImageInvalidError as error:
                self._tell(name, error.message)
                continue
            if installed is not None:
                found.append(installed)
        return found

    def _age(self, name: str) -> tuple[int, int] | None:
        """What tells a model's folder from one that takes its place."""
        with self._folder.errors():
            try:
                status = (self._folder.images / name).stat()
            except FileNotFoundError:
                return None
        return status.st_ino, status.st_ctime_ns

    def _resolve_source(self, source: Source) -> ImageModel:
        origin = source.origin()
        same = [installed for installed in self._all() if installed.origin == origin]
        if same:
            return min(same, key=lambda installed: installed.model.name != source.name).model
        name = _check_name(source.name, source)
        try:
            return self._take_in(source, name, {}, {})
        except ImageExistsError:
            own_name = f"{name}-{source.suffix()}"
            self._tell(own_name, f"{source.shown} is another image than the installed {name}")
            return self._take_in(source, own_name, {}, {})

    def _take_in(
        self, source: Source, name: str, digests: Mapping[str, str], metadata: Mapping[str, Any]
    ) -> ImageModel:
        """Install ``source``, or return the model that was made of it meanwhile."""
        installed = self._find(name)
        if installed is None:
            with self._folder.hold(name):
                installed = self._find(name)
                if installed is None:
                    return self._install(
                        name, lambda folder: assemble(folder, name, source, digests, metadata, self._progress)
                    )
        if not source.made(installed):
            raise _exists(installed)
        for algorithm, expected in digests.items():
            found = file_digest(installed.model.disk, algorithm)
            if found != expected:
                raise source.digest_error(f"{source.shown}: its {algorithm} is {found}, not {expected}")
        return installed.model

    def _install(self, name: str, make: Callable[[Path], Installed]) -> ImageModel:
        with self._folder.partial(name) as folder:
            made = make(folder)
            model = replace(made.model, name=name)
            seal(model)
            write_model(folder, replace(made, model=model))
            self._folder.publish(folder, name)
        self._tell(name, "installed")
        return self.get(name)

    def _build_in(self, folder: Path, name: str, recipe: Recipe) -> Installed:
        model = recipe.build(folder, self._identity(), self._progress)
        boot = model.direct_boot
        files = [model.disk, *([boot.kernel, boot.initrd] if boot else [])]
        digests = {path.name: self._digest(name, path) for path in files if path is not None}
        return Installed(model, Origin("recipe", recipe.name), digests)

    def _digest(self, name: str, path: Path) -> str:
        total = path.stat().st_size
        return file_digest(path, tell=lambda done: self._tell(name, "checking", done, total))

    def _tell(self, name: str, text: str, done: int | None = None, total: int | None = None) -> None:
        self._progress(Step(f"image {name}", text, done, total))

    def _not_found(self, name: str) -> ImageNotFoundError:
        names = self.names()
        close = difflib.get_close_matches(name, [*names, *_recipes()], n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        return ImageNotFoundError(
            f"no image {name!r} is installed in {self._folder.images}{meant}; "
            f"installed: {', '.join(names) or 'none'}",
            hint=_how_to_install(),
        )


def _recipes() -> Mapping[str, Recipe]:
    # Looked up when needed: most runs build nothing.
    from pytest_vmfest.images import recipes

    return recipes.RECIPES


def _how_to_install() -> str:
    return f"add one: vmfest image add PATH|URL; or build one: vmfest image build {'|'.join(_recipes())}"


def _check_name(name: str, source: Source) -> str:
    if not name:
        raise ConfigurationError(f"{source.shown} gives the image no name", hint="give one: --name NAME")
    return check_image_name(name)


def _check_digests(digests: Mapping[str, str | None]) -> dict[str, str]:
    """The digests that are given, in lower case."""
    given = {algorithm: digest.lower() for algorithm, digest in digests.items() if digest is not None}
    for algorithm, digest in given.items():
        digits = _DIGEST_DIGITS[algorithm]
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", digest):
            raise ConfigurationError(
                f"{digest!r} is no {algorithm} digest", hint=f"give its {digits} hexadecimal digits"
            )
    return given


def _exists(taken: Installed) -> ImageExistsError:
    name = taken.model.name
    return ImageExistsError(
        f"an image {name!r} is installed already, from {taken.origin.source}",
        hint=f"give another name (--name), or remove that one first: vmfest image remove {name}",
    )


def _in_use(name: str, users: Sequence[str]) -> ImageInUseError:
    return ImageInUseError(
        f"image {name!r} is in use by {', '.join(users)}",
        users=users,
        hint="destroy these instances first: vmfest instance destroy NAME",
    )


def _made_by(recipe: str, installed: Installed) -> ImageModel:
    if (installed.origin.kind, installed.origin.source) != ("recipe", recipe):
        raise _exists(installed)
    return installed.model
