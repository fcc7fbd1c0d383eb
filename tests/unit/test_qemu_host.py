"""Finding QEMU, and saying what is missing."""

from pathlib import Path

import pytest

from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.qemu import QemuDriver, host
from pytest_vmfest.errors import DriverUnavailableError, NotSupportedError
from pytest_vmfest.specs import ImageModel


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with nothing but what is put there: a program's name and what it prints as its version."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return put


@pytest.fixture
def driver(tmp_path):
    """A driver that has touched nothing yet."""
    return QemuDriver(DriverSettings(tmp_path / "home", accel="tcg"))


def test_no_qemu_at_all(programs, driver):
    """Opening names both programs, both packages and the command to type; describing does not raise."""
    with pytest.raises(DriverUnavailableError) as caught:
        driver.open()
    for word in (
        "qemu-system-x86_64",
        "qemu-img",
        "qemu-system-x86",
        "qemu-utils",
        "vmfest doctor --install",
    ):
        assert word in str(caught.value)
    assert "not installed" in driver.describe()
    (check,) = driver.check()
    assert not check.ok
    assert check.packages == ("qemu-system-x86", "qemu-utils")


def test_one_program_is_missing(programs, driver):
    """Only what is missing is named."""
    programs("qemu-system-x86_64", "echo QEMU emulator version 8.2.0")
    with pytest.raises(DriverUnavailableError, match="no qemu-img in PATH") as caught:
        driver.open()
    assert "qemu-system" not in str(caught.value)


@pytest.mark.parametrize("version", ["6.2.0", "7.1.0", "0.9"])
def test_a_qemu_that_is_too_old(programs, driver, version):
    """The error tells the version found and the oldest that will do."""
    programs("qemu-system-x86_64", f"echo 'QEMU emulator version {version} (Debian)'")
    programs("qemu-img", "true")
    with pytest.raises(DriverUnavailableError, match=rf"version {version}; 7\.2 is the oldest"):
        driver.open()


@pytest.mark.parametrize("version", ["7.2.22", "8.0", "10.0.2", "11.1.50"])
def test_versions_that_will_do(programs, driver, version):
    """Numbers are compared as numbers."""
    programs("qemu-system-x86_64", f"echo 'QEMU emulator version {version} (Debian 1:x)'")
    programs("qemu-img", "true")
    driver.open()
    assert driver.describe() == f"QEMU {version} (tcg: asked for)"
    checks = driver.check()
    assert {check.name for check in checks} >= {"QEMU", "QEMU accelerator", "QEMU disk access"}
    assert all(check.ok for check in checks)


def test_a_folder_of_its_own(programs, tmp_path, monkeypatch):
    """QEMU is taken from the configured folder, also a relative one, and never from PATH."""
    programs("qemu-system-x86_64", "echo QEMU emulator version 8.2.0")
    programs("qemu-img", "true")
    own = tmp_path / "own"
    own.mkdir()
    driver = QemuDriver(DriverSettings(tmp_path / "home", accel="tcg", qemu=own))
    with pytest.raises(
        DriverUnavailableError, match=r"own, has no qemu-system-x86_64 and no qemu-img"
    ) as caught:
        driver.open()
    assert "--vm-qemu" in caught.value.hint
    (check,) = driver.check()
    assert (check.ok, check.packages) == (False, ())
    (own / "qemu-system-x86_64").write_text("#!/bin/sh\necho QEMU emulator version 11.1.3")
    (own / "qemu-img").write_text("#!/bin/sh\n")
    for program in own.iterdir():
        program.chmod(0o755)
    assert driver.describe().startswith("QEMU 11.1.3")
    monkeypatch.chdir(tmp_path)
    assert host.find_programs(Path("own")).image == str(own / "qemu-img")


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo 'no shared object' >&2; exit 127", "no shared object"), ("echo hello", "hello")],
)
def test_a_qemu_that_does_not_run(programs, driver, script, said):
    """A broken installation is told with what the program said."""
    programs("qemu-system-x86_64", script)
    programs("qemu-img", "true")
    with pytest.raises(DriverUnavailableError, match=said):
        driver.open()
    assert "does not tell its version" in driver.describe()


def test_an_image_that_needs_efi(driver, tmp_path, monkeypatch):
    """Without OVMF, such an image is refused with the package's name; doctor tells, but is content."""
    monkeypatch.setattr(host, "_FIRMWARE_FOLDER", tmp_path)
    with pytest.raises(NotSupportedError, match=r"(?s)EFI firmware.*ovmf"):
        driver.check_image(ImageModel("modern", tmp_path / "disk", "raw", firmware="efi"))


def test_nothing_is_touched_before_use(driver, tmp_path):
    """Making a driver, describing it and listing its machines leaves no trace."""
    driver.describe()
    assert driver.machines() == []
    driver.close()
    assert list(tmp_path.iterdir()) == []
