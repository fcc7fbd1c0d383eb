"""``vmfest doctor``: findings, exit status, and installing what is missing by a stand-in for apt-get."""

import io
import json
import os
import shutil
import stat

import pytest
from click.testing import CliRunner

from pytest_vmfest.checks import Check
from pytest_vmfest.cli import doctor, install, main
from pytest_vmfest.errors import ConfigurationError, DriverUnavailableError, StoreError
from pytest_vmfest.images import recipes

APT_GET = """\
#!/bin/sh
echo "$DEBIAN_FRONTEND apt-get $*" >> {log}
case "$*" in
  *update) [ -f {folder}/update ] || exit 0; . {folder}/update ;;
  *) [ ! -f {folder}/install ] || . {folder}/install ;;
esac
case "$*" in
  *update) ;;
  *) for program in hyper mkdisk; do ln -sf /bin/true {bin}/$program; done ;;
esac
"""


class HyperDriver:
    """A driver that needs the program ``hyper``."""

    def __init__(self, settings):
        self.settings = settings

    @classmethod
    def why_not(cls, settings):
        """Nothing."""
        return ""

    def check(self):
        """One finding that matters, and one that the driver does without."""
        ok = shutil.which("hyper") is not None
        return [
            Check("hyper", ok, "found" if ok else "hyper is not installed", "install it", ("hyper-system",)),
            Check("kvm", False, "no KVM here", "none is needed"),
        ]

    def open(self):
        """Refuse without the program."""
        if shutil.which("hyper") is None:
            raise DriverUnavailableError("hyper is not installed")

    def close(self):
        """Nothing was taken."""


def check_mkdisk():
    """The findings of the only recipe."""
    ok = shutil.which("mkdisk") is not None
    return [Check("recipe small: mkdisk", ok, "mkdisk", "install it", ("disk-tools",))]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with one driver and one recipe, and a folder of programs of our own making."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("env", "sh", "ln"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "ssh").symlink_to("/bin/true")
    write_program(
        programs / "apt-get",
        APT_GET.format(log=tmp_path / "apt.log", folder=tmp_path, bin=programs),
    )
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(doctor, "DRIVERS", {"hyper": "", "fake": ""})
    monkeypatch.setattr(doctor, "driver_class", lambda name: HyperDriver)
    monkeypatch.setattr(doctor, "_ENOUGH_BYTES", 1)
    monkeypatch.setattr(install, "_LOCK_INTERVAL_S", 0.01)
    recipe = recipes.Recipe("small", "a small one", build=None, check=check_mkdisk)
    monkeypatch.setattr(recipes, "RECIPES", {"small": recipe})
    return tmp_path


def write_program(path, text):
    """An executable shell script."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def vmfest(*arguments, answer=None):
    """The result of a command line."""
    return CliRunner().invoke(main, ["doctor", *arguments], input=answer)


def apt_calls(host):
    """How apt-get was called, line by line."""
    log = host / "apt.log"
    return log.read_text().splitlines() if log.exists() else []


def test_shows_each_finding_with_its_remedy_and_fails(host):
    """What is missing is shown with what to do about it, and the exit status is 1."""
    result = vmfest()
    assert result.exit_code == 1
    assert "driver hyper: does not work" in result.stdout
    assert "✗ hyper  hyper is not installed" in result.stdout
    assert "install it" in result.stdout
    assert "Missing packages: disk-tools hyper-system" in result.stdout
    assert "vmfest doctor --install" in result.stdout
    assert "fake" not in result.stdout
    assert not (host / "home").exists()


def test_is_well_when_a_driver_opens_though_a_finding_is_not(host):
    """A driver that can be opened works, even if something that it does without is missing."""
    for name in ("hyper", "mkdisk"):
        (host / "bin" / name).symlink_to("/bin/true")
    result = vmfest("--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["ok"] is True
    assert [(one["kind"], one["works"]) for one in found["findings"]] == [
        ("driver", True), ("recipe", True), ("store", True), ("command", True),
    ]  # fmt: skip
    assert [check["ok"] for check in found["findings"][0]["checks"]] == [True, False]


@pytest.mark.parametrize("alone", [False, True], ids=["said by a check", "said by none"])
def test_a_driver_that_opens_and_cannot_run_machines(host, monkeypatch, alone):
    """What the driver itself says against it counts; if no finding tells it, there is one more."""
    for name in ("hyper", "mkdisk"):
        (host / "bin" / name).symlink_to("/bin/true")
    monkeypatch.setattr(HyperDriver, "why_not", lambda self, settings: "its module is not loaded")
    if alone:
        monkeypatch.setattr(HyperDriver, "check", lambda self: [Check("hyper", True, "found")])
    result = vmfest()
    assert result.exit_code == 1
    assert "driver hyper: does not work" in result.stdout
    assert ("its module is not loaded" in result.stdout) is alone


def test_a_configuration_that_a_driver_refuses(host, monkeypatch):
    """It is a finding of that driver, not the end of all findings."""

    def refuse(self):
        raise ConfigurationError("'nonsense' is not the URL of a web service", hint="such as http://host/")

    monkeypatch.setattr(HyperDriver, "open", refuse)
    monkeypatch.setattr(HyperDriver, "check", refuse)
    result = vmfest()
    assert result.exit_code == 1
    assert "driver hyper: does not work" in result.stdout
    assert result.stdout.count("'nonsense' is not the URL") == 1
    assert "store" in result.stdout


def test_fails_when_only_a_recipe_lacks_a_tool(host):
    """A driver alone is not enough: the recipes' tools belong to a host that is well."""
    (host / "bin/hyper").symlink_to("/bin/true")
    result = vmfest()
    assert result.exit_code == 1
    assert "driver hyper: works" in result.stdout
    assert "recipe small: does not work" in result.stdout


def test_a_check_that_fails_itself_is_a_finding(host, monkeypatch):
    """An error while looking is shown among the findings, not instead of them."""

    def fail():
        raise StoreError("the disk is on fire", hint="leave the building")

    monkeypatch.setattr(recipes, "RECIPES", {"small": recipes.Recipe("small", "", build=None, check=fail)})
    result = vmfest()
    assert result.exit_code == 1
    assert "the disk is on fire" in result.stdout
    assert "leave the building" in result.stdout


def test_install_runs_apt_get_and_looks_again(host):
    """With --install --yes the missing packages are installed, lists first, and the findings are new."""
    result = vmfest("--install", "--yes")
    assert result.exit_code == 0, result.output
    update, install_ = apt_calls(host)
    assert update.endswith("update")
    assert install_.endswith("install -y --no-install-recommends disk-tools hyper-system")
    for call in (update, install_):
        assert call.startswith("noninteractive apt-get")
        assert "DPkg::Lock::Timeout=300" in call
    assert "driver hyper: works" in result.stdout


def test_install_keeps_json_clean(host):
    """What apt-get prints does not mix with the JSON on standard output."""
    (host / "install").write_text("echo unpacking things\n")
    result = vmfest("--install", "--yes", "--json")
    assert json.loads(result.stdout)["ok"] is True
    assert "unpacking things" in result.stderr


@pytest.mark.parametrize("answer", ["n\n", ""], ids=["no", "nobody"])
def test_install_asks_first(host, answer):
    """Without --yes, the exact commands are shown; a no, or nobody's answer, changes nothing."""
    result = vmfest("--install", answer=answer)
    assert result.exit_code == 1
    assert "apt-get -q -o DPkg::Lock::Timeout=300 install -y" in result.stderr
    assert "--yes" in result.stderr
    assert apt_calls(host) == []


class Interrupting(io.BytesIO):
    """A standard input at which the user presses Ctrl-C."""

    def read1(self, size=-1):
        """Be interrupted."""
        raise KeyboardInterrupt


def test_ssh_is_wanted_but_not_needed(host):
    """Without an ssh client machines can be run all the same; what brings it is named."""
    for name in ("hyper", "mkdisk"):
        (host / "bin" / name).symlink_to("/bin/true")
    (host / "bin" / "ssh").unlink()
    result = vmfest()
    assert result.exit_code == 0
    assert "Missing packages: openssh-client" in result.stdout


def test_install_question_answered_by_ctrl_c(host):
    """Ctrl-C at the question is Ctrl-C: status 130, and nothing is changed."""
    assert vmfest("--install", answer=Interrupting()).exit_code == 130
    assert apt_calls(host) == []


def test_install_goes_on_after_a_yes(host):
    """Without --yes, a yes installs."""
    assert vmfest("--install", answer="y\n").exit_code == 0


def test_install_with_nothing_missing_does_nothing(host):
    """On a host that has everything, apt-get is not called at all."""
    for name in ("hyper", "mkdisk"):
        (host / "bin" / name).symlink_to("/bin/true")
    (host / "bin/apt-get").unlink()
    result = vmfest("--install", "--yes")
    assert result.exit_code == 0
    assert "nothing to install" in result.stderr


def test_install_tells_what_apt_get_said_when_it_fails(host):
    """A failure of apt-get ends with status 1, after its own words."""
    (host / "install").write_text("echo 'E: Unable to locate package hyper-system'; exit 100\n")
    result = vmfest("--install", "--yes")
    assert result.exit_code == 1
    assert "E: Unable to locate package hyper-system" in result.stderr
    assert "failed with status 100" in result.stderr


def test_install_goes_on_when_the_lists_cannot_be_renewed(host):
    """One broken source among the system's many does not keep what the others have from being installed."""
    (host / "update").write_text("echo 'E: broken.example has no Release file'; exit 100\n")
    result = vmfest("--install", "--yes")
    assert result.exit_code == 0
    assert "broken.example" in result.stderr


def test_install_waits_for_another_package_manager(host):
    """The lock of the package lists, which apt-get itself does not wait for, is waited for."""
    locked = "echo 'E: Could not get lock /var/lib/apt/lists/lock.'; exit 100"
    (host / "update").write_text(f"[ -f {host}/tried ] || {{ : > {host}/tried; {locked}; }}\n")
    result = vmfest("--install", "--yes")
    assert result.exit_code == 0, result.output
    assert [call.split()[-1] for call in apt_calls(host)][:2] == ["update", "update"]
    assert "waiting for another package manager" in result.stderr


def test_install_becomes_root_through_sudo(host, monkeypatch):
    """An ordinary user's commands go through sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    write_program(host / "bin/sudo", f'#!/bin/sh\necho "sudo $1 $2" >> {host}/sudo.log\nexec "$@"\n')
    assert vmfest("--install", "--yes").exit_code == 0
    assert (host / "sudo.log").read_text() == "sudo env DEBIAN_FRONTEND=noninteractive\n" * 2


@pytest.mark.parametrize(
    ("missing", "told"), [("sudo", "there is no sudo"), ("apt-get", "there is no apt-get")]
)
def test_install_by_hand(host, monkeypatch, missing, told):
    """Where nothing can be installed for the user, the packages are named."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if missing == "apt-get":
        (host / "bin/apt-get").unlink()
    result = vmfest("--install", "--yes")
    assert result.exit_code == 1
    assert told in result.stderr
    assert "disk-tools hyper-system" in result.stderr


def test_store_that_cannot_be_written(tmp_path):
    """A store whose place takes no files is a finding that names the place."""
    (tmp_path / "file").write_text("")
    (check,) = doctor.check_store(tmp_path / "file" / "home")
    assert not check.ok
    assert str(tmp_path / "file") in check.detail


def test_store_without_room(tmp_path, monkeypatch):
    """A store with too little room left is a finding."""
    monkeypatch.setattr(doctor, "_ENOUGH_BYTES", 1 << 80)
    assert [check.ok for check in doctor.check_store(tmp_path)] == [True, False]
