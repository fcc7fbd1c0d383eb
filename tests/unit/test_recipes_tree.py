"""A guest's root file system as a folder."""

import os
import stat

import pytest

from pytest_vmfest.images.recipes.tree import Tree


@pytest.fixture
def tree(tmp_path):
    """An empty tree, under a umask that would hide everything from other users."""
    before = os.umask(0o077)
    yield Tree(tmp_path / "root")
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_modes_do_not_depend_on_the_umask(tree, tmp_path):
    """Folders and programs are open to all users of the guest, and files readable, unless told otherwise."""
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    tree.write("etc/deep/plain", "text\n")
    tree.write("etc/script", "#!/bin/sh\n")
    tree.write("etc/secret", "key\n", 0o600)
    tree.program("usr/bin/program", program)
    tree.folder("root", 0o700)
    tree.folder("tmp", 0o1777)
    modes = {
        str(path.relative_to(tree.root)): mode(path) for path in (tree.root, *sorted(tree.root.rglob("*")))
    }
    assert modes == {
        ".": 0o755,
        "etc": 0o755,
        "etc/deep": 0o755,
        "etc/deep/plain": 0o644,
        "etc/script": 0o755,
        "etc/secret": 0o600,
        "root": 0o700,
        "tmp": 0o1777,
        "usr": 0o755,
        "usr/bin": 0o755,
        "usr/bin/program": 0o755,
    }


def test_a_file_takes_the_place_of_a_link(tree):
    """Writing to where a link is replaces the link and not what it points to."""
    tree.write("etc/target", "old\n")
    tree.link("etc/link", "target")
    tree.write("etc/link", "new\n")
    assert (tree.root / "etc/target").read_text() == "old\n"
    assert not (tree.root / "etc/link").is_symlink()
    tree.link("etc/link", "/dev/null")
    assert (tree.root / "etc/link").readlink().as_posix() == "/dev/null"


def test_files_go_through_links_of_folders(tree):
    """A path below a link to a folder ends in that folder."""
    tree.folder("usr/bin")
    tree.link("bin", "usr/bin")
    tree.write("bin/tool", "#!/bin/sh\n")
    assert (tree.root / "usr/bin/tool").exists()


def test_a_template_is_copied_as_it_is(tree, tmp_path):
    """All files of a folder arrive at their places."""
    template = tmp_path / "template"
    (template / "etc/init.d").mkdir(parents=True)
    (template / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (template / "etc/init.d/boot").write_text("#!/bin/sh\n")
    tree.copy(template)
    assert (tree.root / "etc/hosts").read_text() == "127.0.0.1 localhost\n"
    assert mode(tree.root / "etc/init.d/boot") == 0o755
