"""The host's packages without the host's root: apt on a private state, with the host's own sources."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.tools import run
from pytest_vmfest.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pytest_vmfest.progress import Progress

_CONFIGURATION = """
Dir::State "{folder}/state";
Dir::State::lists "{folder}/state/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Cache::archives "{folder}/cache/archives";
Dir::Log "{folder}/log";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg;
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""

# For sources that are not the host's. A mirror that is frozen at some day is past its validity soon.
_OTHER_SOURCES = """
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Check-Valid-Until "false";
"""

# What apt is told is installed already, in a version that satisfies everybody.
_PRESENT = """Package: vmfest-not-needed
Status: install ok installed
Version: 1
Architecture: all
Multi-Arch: foreign
Maintainer: nobody
Description: stands for packages that are done without
Provides: {names}

"""


@dataclass(frozen=True)
class Mirrors:
    """Where the host gets Debian from: the URLs of the archive and, if it has one, of security updates."""

    archive: str
    security: str | None


class PrivateApt:
    """apt with lists, cache and (invented) installed packages of its own, all under ``folder``.

    Sources, keys, proxies and preferences are the host's. Needs neither root nor an earlier update of lists.
    """

    def __init__(
        self,
        folder: Path,
        task: str,
        progress: Progress,
        *,
        without: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> None:
        """Lay out ``folder``.

        ``without`` are packages that no dependency shall bring in; ``sources`` lines of a ``sources.list`` to
        use instead of the host's own.
        """
        self._task = task
        self._progress = progress
        self._archives = folder / "cache/archives"
        self._config = folder / "apt.conf"
        self._update_error: ImageBuildError | None = None
        for name in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / name).mkdir(parents=True)
        names = ", ".join(f"{name} (= 999:999)" for name in without)
        (folder / "state/status").write_text(_PRESENT.format(names=names) if without else "")
        configuration = _CONFIGURATION.format(folder=folder) + _indexes_not_needed()
        if sources:
            (folder / "sources.list").write_text("".join(f"{line}\n" for line in sources))
            configuration += _OTHER_SOURCES.format(folder=folder)
        self._config.write_text(configuration)

    def update(self) -> None:
        """Read the package lists. A source that does not answer is an error only if something is missed."""
        self._progress(Step(self._task, "reading package lists"))
        try:
            self._apt("update", timeout_s=300)
        except ImageBuildError as error:
            self._update_error = error

    def mirrors(self) -> Mirrors:
        """The host's sources of Debian itself; `ImageBuildError` when it has none (Ubuntu)."""
        form = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
        found: dict[str, str] = {}
        for line in self._apt("indextargets", "--format", form, timeout_s=60).splitlines():
            kind, origin, label, component, uri = line.strip().split("|", 4)
            if (kind, origin, component) == ("Packages", "Debian", "main"):
                found.setdefault(label, uri)
        if "Debian" not in found:
            raise self._update_error or ImageBuildError(
                "this host's package sources name no mirror of Debian",
                hint="build this recipe on Debian, or add a Debian source to apt's configuration",
            )
        return Mirrors(found["Debian"], found.get("Debian-Security"))

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Fetch ``packages`` with all that they depend on; the paths of the ``.deb`` files."""
        arguments = ["install", "--yes", "--download-only", *packages]
        try:
            plan = self._apt(*arguments, "--print-uris", timeout_s=60)
        except ImageBuildError as error:
            raise self._update_error or error from None
        files = {name: int(size) for name, size in re.findall(r"^'\S+' (\S+\.deb) (\d+)", plan, re.MULTILINE)}
        total = sum(files.values())
        text = f"downloading {len(files)} packages"
        self._progress(Step(self._task, text, 0, total))
        self._apt(
            *arguments,
            timeout_s=1800,
            watch=lambda _: self._progress(Step(self._task, text, min(self._fetched(), total), total)),
        )
        self._progress(Step(self._task, text, total, total))
        return [self._archives / name for name in files]

    def _fetched(self) -> int:
        size = 0
        for path in self._archives.rglob("*.deb"):
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue  # apt has just moved it
        return size

    def _apt(self, *arguments: str, timeout_s: float, watch: Callable[[str], None] | None = None) -> str:
        return run(["apt-get", "-q", "-c", self._config, *arguments], timeout_s=timeout_s, watch=watch)


def _indexes_not_needed() -> str:
    """Configuration that leaves out what other programs let apt fetch (screenshots, lists of files)."""
    dump = run(["apt-config", "dump", "Acquire::IndexTargets"], timeout_s=20)
    names = set(re.findall(r"^Acquire::IndexTargets::deb::([^: ]+)", dump, re.MULTILINE)) - {"Packages"}
    return "".join(f'Acquire::IndexTargets::deb::{name}::DefaultEnabled "false";\n' for name in sorted(names))
