"""Private folders, and refusals to write."""

import stat

import pytest

from pytest_vmfest.errors import StoreError
from pytest_vmfest.folders import make_private, writing_to


def test_all_that_is_made_is_private_and_what_was_there_is_left(tmp_path):
    """New folders are for this user alone; an existing one above them keeps its mode."""
    tmp_path.chmod(0o755)
    make_private(tmp_path / "home" / "machines")
    make_private(tmp_path / "home" / "machines")
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path, tmp_path / "home" / "machines")]
    assert modes == [0o755, 0o700]
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_file_in_the_way_is_an_error(tmp_path):
    """A file of that name is not taken for a folder."""
    (tmp_path / "home").write_text("")
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "home")


@pytest.mark.parametrize(
    ("number", "hint"),
    [(28, "free some space"), (13, "make it writable"), (30, "VMFEST_HOME"), (5, "refused")],
)
def test_refusals_to_write_become_store_errors(number, hint, tmp_path):
    """The error says where, what, and, where anything can be done, what."""
    with pytest.raises(StoreError, match=hint) as caught, writing_to(tmp_path):
        raise OSError(number, "refused")
    assert f"cannot write to {tmp_path}: refused" in str(caught.value)
