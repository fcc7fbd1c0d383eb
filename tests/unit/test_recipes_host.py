"""What recipes ask of the host, and how they clean up."""

import os
import subprocess
import sys

import pytest

from pytest_vmfest.checks import Check
from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes import RECIPES, host
from pytest_vmfest.images.recipes.rootless import check_namespaces, remove_tree, run_as_root


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "ubuntu"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "ubuntu"),
        ({"ID": "raspbian", "ID_LIKE": "debian"}, "debian"),
    ],
)
def test_derivatives_count_as_their_parent(monkeypatch, release, family):
    """Distributions made from Debian or Ubuntu build as these do."""
    monkeypatch.setattr(host, "os_release", lambda: release)
    assert host.distribution() == family


def test_other_hosts_are_refused(monkeypatch):
    """A host without Debian packages is told so, by its name, and what it can do instead."""
    monkeypatch.setattr(host, "os_release", lambda: {"ID": "fedora", "PRETTY_NAME": "Fedora Linux 44"})
    with pytest.raises(ImageBuildError, match="Fedora Linux 44") as caught:
        host.distribution()
    assert "image add" in caught.value.hint
    assert not host.check_host("tiny").ok


def test_missing_programs_are_told_with_their_packages():
    """Each finding names the package, and one error names all of them."""
    checks = host.check_programs("tiny", {"sh": "dash", "no-such-a": "package-a", "no-such-b": "package-b"})
    assert [check.ok for check in checks] == [True, False, False]
    assert checks[1].packages == ("package-a",)
    with pytest.raises(ImageBuildError, match="no-such-a is not installed; no-such-b") as caught:
        host.require(checks)
    assert caught.value.hint == "apt-get install package-a package-b"
    host.require(checks[:1])


def test_trouble_without_packages_has_its_own_remedy():
    """What no package mends is told with what else to do."""
    with pytest.raises(ImageBuildError) as caught:
        host.require([Check("x", False, "does not work", "build as root")])
    assert caught.value.hint == "build as root"


def test_work_folder_is_gone_afterwards(tmp_path):
    """Nothing is left of it, also after an error."""

    def build():
        with host.work_folder(tmp_path) as work:
            (work / "deep/er").mkdir(parents=True)
            (work / "deep/er/file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(tmp_path.iterdir()) == []


def test_the_check_of_namespaces_is_a_proof(tmp_path):
    """Where it says so, files can be given to others, are seen so, and are removed again."""
    check = check_namespaces("debian-12")
    if not check.ok:
        assert check.remedy
        with pytest.raises(ImageBuildError):
            run_as_root(["true"], timeout_s=20)
        return
    folder = tmp_path / "folder"
    script = (
        'mkdir -m 700 "$0" && touch "$0/file" && chown -R 1000:1000 "$0" && stat -c %u "$0/file" && echo $$'
    )
    assert run_as_root(["sh", "-c", script, folder], timeout_s=20) == "1000\n1\n"
    assert (folder.stat().st_uid == 1000) == (os.getuid() == 0)
    remove_tree(folder)
    assert not folder.exists()


def test_recipes_are_cheap_to_list():
    """Listing them loads no recipe's code; checking one does."""
    code = (
        "import sys\n"
        "from pytest_vmfest.images.recipes import RECIPES\n"
        "loaded = {name.rpartition('.')[2] for name in sys.modules if 'recipes.' in name}\n"
        "assert loaded == {'base'}, loaded\n"
        "assert 'subprocess' not in sys.modules\n"
        "RECIPES['tiny'].check()\n"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env={**os.environ, "PYTHONPATH": "."})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_checks_say_what_a_recipe_needs(recipe):
    """Every finding is named after the recipe, and one that is not well says what to do."""
    checks = recipe.check()
    assert all(recipe.name in check.name for check in checks)
    assert all(check.ok or check.remedy for check in checks)
    assert {"e2fsprogs", "qemu-utils"} <= {package for check in checks for package in check.packages}
