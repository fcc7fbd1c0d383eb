"""Packages: read, unpacked, and fetched by apt on a private state, all from a small archive made here."""

import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from pytest_vmfest.errors import ImageBuildError
from pytest_vmfest.images.recipes.apt import PrivateApt
from pytest_vmfest.images.recipes.packages import (
    LIBRARIES,
    LOADER,
    linked_libraries,
    merged,
    pick,
    run_unpacked,
    unpack,
)
from pytest_vmfest.progress import silent

TASK = "image test"


def make_deb(folder, name, *, depends="", files=()):
    """A Debian package with files by name; a name that ends in @ is a link."""
    tree = folder / f"{name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
        + (f"Depends: {depends}\n" if depends else "")
    )
    for path in files:
        place = tree / path.rstrip("@")
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("@"):
            place.symlink_to("target")
        else:
            place.write_text(f"{name}: {path}\n")
            place.chmod(0o755)
    deb = folder / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    shutil.rmtree(tree)
    return deb


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder of packages that apt has for its only source."""
    folder = tmp_path / "archive"
    folder.mkdir()
    make_deb(folder, "tool", depends="library, documentation")
    make_deb(folder, "library")
    make_deb(folder, "documentation")
    index = ""
    for deb in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        index += f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"
    (folder / "Packages").write_text(index)
    use_sources(tmp_path, monkeypatch, f"deb [trusted=yes] copy:{folder} ./\n")
    return folder


def use_sources(tmp_path, monkeypatch, sources):
    """Let apt on this host have other sources than its own."""
    (tmp_path / "sources.list").write_text(sources)
    config = tmp_path / "host.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))


def test_packages_come_with_their_dependencies(archive, tmp_path):
    """All that a package depends on is fetched, but what is left out, and progress ends at the total."""
    steps = []
    apt = PrivateApt(tmp_path / "apt", TASK, steps.append, without=["documentation"])
    apt.update()
    debs = apt.download(["tool"])
    assert sorted(deb.name for deb in debs) == ["library_1_all.deb", "tool_1_all.deb"]
    assert all(deb.read_bytes() == (archive / deb.name).read_bytes() for deb in debs)
    assert steps[0].text == "reading package lists"
    assert (steps[-1].text, steps[-1].done) == (
        "downloading 2 packages",
        sum(deb.stat().st_size for deb in debs),
    )
    assert {step.task for step in steps} == {TASK}


def test_sources_other_than_the_hosts(archive, tmp_path, monkeypatch):
    """Sources that were named are used, and nothing else, whatever the host has."""
    other = f"deb [trusted=yes] copy:{archive} ./"
    use_sources(tmp_path, monkeypatch, f"deb copy:{tmp_path}/nowhere ./\n")
    apt = PrivateApt(tmp_path / "apt", TASK, silent, sources=[other])
    apt.update()
    assert [deb.name for deb in apt.download(["library"])] == ["library_1_all.deb"]


def test_an_unknown_package_is_told_as_apt_tells_it(archive, tmp_path):
    """Apt's own words are in the error."""
    apt = PrivateApt(tmp_path / "apt", TASK, silent)
    apt.update()
    with pytest.raises(ImageBuildError, match="Unable to locate package nosuch"):
        apt.download(["nosuch"])


def test_a_broken_source_matters_only_if_it_is_missed(archive, tmp_path, monkeypatch):
    """Packages of the other sources are fetched; what cannot be had is told with the source's trouble."""
    source = f"deb [trusted=yes] copy:{archive} ./\n"
    use_sources(tmp_path, monkeypatch, f"{source}deb copy:{tmp_path}/nowhere ./\n")
    apt = PrivateApt(tmp_path / "apt", TASK, silent)
    apt.update()
    assert len(apt.download(["library"])) == 1
    with pytest.raises(ImageBuildError, match="nowhere"):
        apt.download(["nosuch"])


def test_no_network_is_told_as_such(tmp_path, monkeypatch):
    """What keeps the lists from being read is the error, not that packages are unknown then."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        use_sources(tmp_path, monkeypatch, f"deb http://127.0.0.1:{port}/debian stable main\n")
        apt = PrivateApt(tmp_path / "apt", TASK, silent)
        apt.update()
        for missed in (lambda: apt.download(["tool"]), apt.mirrors):
            with pytest.raises(ImageBuildError, match="Connection refused"):
                missed()


def test_a_host_without_debian_is_told(archive, tmp_path):
    """Where no source is Debian's own, the mirrors of Debian cannot be known."""
    apt = PrivateApt(tmp_path / "apt", TASK, silent)
    apt.update()
    with pytest.raises(ImageBuildError, match="no mirror of Debian") as caught:
        apt.mirrors()
    assert caught.value.hint


def test_debians_mirrors_are_the_hosts(archive, tmp_path, monkeypatch):
    """The archive and the security updates are told apart by what their Release files say."""
    for name, label in (("main", "Debian"), ("security", "Debian-Security")):
        suite = tmp_path / name / "dists/stable"
        (suite / "main/binary-amd64").mkdir(parents=True)
        (suite / "main/binary-amd64/Packages").write_bytes((archive / "Packages").read_bytes())
        (suite / "Release").write_text(
            f"Origin: Debian\nLabel: {label}\nCodename: stable\nComponents: main\n"
        )
    use_sources(
        tmp_path,
        monkeypatch,
        f"deb [trusted=yes arch=amd64] copy:{tmp_path}/security stable main\n"
        f"deb [trusted=yes arch=amd64] copy:{tmp_path}/main stable main\n",
    )
    apt = PrivateApt(tmp_path / "apt", TASK, silent)
    apt.update()
    mirrors = apt.mirrors()
    assert (mirrors.archive, mirrors.security) == (f"copy:{tmp_path}/main/", f"copy:{tmp_path}/security/")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("./lib/a.so", "usr/lib/a.so"),
        ("./bin/sh", "usr/bin/sh"),
        ("./lib64/ld.so", "usr/lib64/ld.so"),
        ("./usr/bin/sh", "usr/bin/sh"),
        ("./etc/lib/x", "etc/lib/x"),
        (".", "."),
    ],
)
def test_old_places_lead_into_usr(name, place):
    """/bin, /sbin, /lib and /lib64 are links into /usr in the guest."""
    assert merged(name) == place


def test_wanted_files_are_picked_and_unpacked(tmp_path):
    """Only what is wanted is read, at its place in /usr; links stay links and programs executable."""
    deb = make_deb(tmp_path, "tool", files=["bin/tool", "lib/libtool.so@", "usr/share/doc/tool"])
    assert pick(deb, lambda name: name.startswith("usr/")) == {
        "usr/bin/tool": b"tool: bin/tool\n",
        "usr/share/doc/tool": b"tool: usr/share/doc/tool\n",
    }
    tree = tmp_path / "tree"
    unpack([deb], tree, lambda name: "doc" not in name)
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir()) == [
        "usr/bin/tool",
        "usr/lib/libtool.so",
    ]
    assert (tree / "usr/lib/libtool.so").readlink() == Path("target")
    assert os.access(tree / "usr/bin/tool", os.X_OK)


def test_a_broken_package_is_named(tmp_path):
    """What is no package does not pass as an empty one."""
    deb = tmp_path / "broken_1_all.deb"
    deb.write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(ImageBuildError, match=r"broken_1_all\.deb"):
        pick(deb, lambda name: True)


@pytest.fixture
def programs(tmp_path):
    """A tree with the host's `true` and all that it needs, as if unpacked from packages."""
    tree = tmp_path / "programs"
    (tree / LIBRARIES).mkdir(parents=True)
    (tree / "usr/bin").mkdir()
    shutil.copy("/bin/echo", tree / "usr/bin/echo")
    for source in (Path("/") / LOADER, Path("/") / LIBRARIES / "libc.so.6"):
        shutil.copy(source, tree / LIBRARIES)
    return tree


def test_programs_run_from_where_they_were_unpacked(programs):
    """A program starts with the loader and libraries beside it, which are found as it finds them."""
    assert run_unpacked(programs, "usr/bin/echo", "hello", timeout_s=10) == "hello\n"
    libraries = linked_libraries(programs, programs / "usr/bin/echo")
    assert set(libraries) == {programs / LIBRARIES / "libc.so.6", programs / LOADER}


def test_a_missing_library_is_named(programs):
    """A library that no package brought ends the build, by name."""
    (programs / LIBRARIES / "libc.so.6").unlink()
    with pytest.raises(ImageBuildError, match=r"echo needs libc\.so\.6"):
        linked_libraries(programs, programs / "usr/bin/echo")
