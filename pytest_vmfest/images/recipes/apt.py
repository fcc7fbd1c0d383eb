"""The host's packages without the host's root: apt on a private state, with the host's own package sources."""

from __future__ import annotations

import re
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
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""

# What apt is told is installed already: packages whose programs the guest does without.
_PRESENT = """Package: vmfest-not-needed
Status: install ok installed
Version: 1
Architecture: all
Multi-Arch: foreign
Maintainer: nobody
Description: stands for packages that the guest does without
Provides: {names}

"""


class PrivateApt:
    """apt with lists, cache and (invented) installed packages of its own, all under ``folder``.

    Sources, keys, proxies and preferences are the host's. Needs neither root nor an earlier ``apt-get update``.
    """

    def __init__(self, folder: Path, task: str, progress: Progress, *, without: Sequence[str] = ()) -> None:
        """Lay out ``folder``; ``without`` are packages that no dependency shall bring in."""
        self._folder = folder
        self._task = task
        self._progress = progress
        self.archives = folder / "cache/archives"
        for name in ("state/lists/partial", "cache/archives/partial", "log"):
            (folder / name).mkdir(parents=True)
        provides = ", ".join(f"{name} (= 999:999)" for name in without)
        (folder / "state/status").write_text(_PRESENT.format(names=provides) if without else "")
        self._update_error: ImageBuildError | None = None
        self._config = folder / "apt.conf"
        self._config.write_text(_CONFIGURATION.format(folder=folder) + _indexes_not_needed())

    def update(self) -> None:
        """Read the package lists. A source that does not answer is an error only if a package is missed."""
        self._progress(Step(self._task, "reading package lists"))
        try:
            self._apt("update", timeout_s=300)
        except ImageBuildError as error:
            self._update_error = error

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
        self._apt(*arguments, timeout_s=1800, watch=lambda: self._tell(text, total))
        self._progress(Step(self._task, text, total, total))
        return [self.archives / name for name in files]

    def _tell(self, text: str, total: int) -> None:
        done = 0
        for path in self.archives.rglob("*.deb"):
            try:
                done += path.stat().st_size
            except FileNotFoundError:
                continue  # apt has just moved it
        self._progress(Step(self._task, text, min(done, total), total))

    def _apt(self, *arguments: str, timeout_s: float, watch: Callable[[], None] | None = None) -> str:
        return run(["apt-get", "-q", "-c", self._config, *arguments], timeout_s=timeout_s, watch=watch)


def _indexes_not_needed() -> str:
    """Configuration that leaves out what other programs let apt fetch (screenshots, file lists)."""
    dump = run(["apt-config", "dump", "Acquire::IndexTargets"], timeout_s=20)
    names = set(re.findall(r"^Acquire::IndexTargets::deb::([^: ]+)", dump, re.MULTILINE)) - {"Packages"}
    return "".join(f'Acquire::IndexTargets::deb::{name}::DefaultEnabled "false";\n' for name in sorted(names))
