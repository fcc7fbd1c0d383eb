"""What the VirtualBox lane brings into its host."""

import io
import tarfile

import pytest

from tests.lane import wheels
from tests.lane.parcel import PROJECT, write


def test_the_parcel(tmp_path):
    """The project, its packages and installation, the image and the keys; no caches, and all is root's."""
    packages = tmp_path / "packages"
    (packages / "lib" / "__pycache__").mkdir(parents=True)
    (packages / "lib" / "module.py").write_text("")
    for name in ("images/tiny/model.toml", "keys/id", "images/other/disk.img"):
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).write_text("")
    stream = io.BytesIO()
    write(stream, packages=packages, python="3.14", store=tmp_path / "store")
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        entries = {entry.name: entry for entry in tar}
        plugins = next(name for name in entries if name.endswith("dist-info/entry_points.txt"))
        assert b"[pytest11]" in tar.extractfile(plugins).read()
    site = "venv/lib/python3.14/site-packages"
    assert {
        "project/pytest_vmfest/__init__.py", "project/tests/lane/keeper.py", "project/conftest.py",
        f"{site}/lib/module.py", f"{site}/vmfest.pth", "venv/bin/vmfest",
        "work/home/images/tiny/model.toml", "work/home/keys/id",
    } <= entries.keys()  # fmt: skip
    assert plugins.startswith(site)
    assert not any("__pycache__" in name or "images/other" in name for name in entries)
    assert {(entry.uid, entry.gid) for entry in entries.values()} == {(0, 0)}


def test_packages_are_those_of_the_project_and_the_sdk():
    """Dependencies come from pyproject.toml; the SDK is the one of VirtualBox's release."""
    wanted = wheels.requirements(PROJECT, "7.2.22")
    assert "vbox-sdk==7.2.22" in wanted
    assert "pytest-timeout" in wanted
    assert any(name.startswith("paramiko") for name in wanted)


def test_packages_are_fetched_once(tmp_path, monkeypatch):
    """The same list for the same Python comes from the cache; of old lists only the latest stay."""
    calls = []

    def pip_install(wanted, python, target):
        calls.append(wanted)
        target.mkdir()

    monkeypatch.setattr(wheels, "_pip_install", pip_install)
    first = wheels.folder_with(["a", "b"], "3.14", tmp_path)
    assert wheels.folder_with(["a", "b"], "3.14", tmp_path) == first
    assert calls == [["a", "b"]]
    for number in range(3):
        wheels.folder_with([str(number)], "3.14", tmp_path)
    assert not first.exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_pip_is_told_in_its_own_words(tmp_path):
    """What pip says is in the error, and nothing half-made stays in the cache."""
    with pytest.raises(wheels.WheelsError, match="no-such-package@@"):
        wheels.folder_with(["no-such-package@@"], "3.14", tmp_path)
    assert list(tmp_path.iterdir()) == []
