"""Options from all their places. Precedence as users see it is tested with the plugin."""

import pytest

from pytest_vmfest.config import OPTIONS, Settings, load_settings, store_home
from pytest_vmfest.errors import ConfigurationError


def test_names_are_derived():
    """One declaration gives the flag, the ini key and the variable."""
    option = next(option for option in OPTIONS if option.name == "boot_timeout")
    assert (option.flag, option.ini, option.variable) == (
        "--vm-boot-timeout",
        "vm_boot_timeout",
        "VMFEST_BOOT_TIMEOUT",
    )


def test_defaults():
    """Nothing said anywhere gives the declared defaults."""
    assert load_settings(environ={}) == Settings()


def test_precedence():
    """Command line before environment before ini file, option by option."""
    settings = load_settings(
        command_line={"vm_driver": "fake"}.get,
        environ={"VMFEST_DRIVER": "qemu", "VMFEST_KEEP": "failed"},
        ini={"vm_driver": "x", "vm_keep": "always", "vm_boot_timeout": "7"}.get,
    )
    assert (settings.driver, settings.keep, settings.boot_timeout) == ("fake", "failed", 7.0)


def test_paths_are_absolute(tmp_path, monkeypatch):
    """A folder is meant as seen from where the run was started, or from the user's home."""
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={"VMFEST_QEMU": "build/qemu"}).qemu == tmp_path / "build/qemu"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load_settings(command_line={"vm_qemu": "~/qemu"}.get, environ={}).qemu == tmp_path / "me/qemu"


@pytest.mark.parametrize(("word", "value"), [("1", True), ("yes", True), ("off", False), ("False", False)])
def test_flags_in_the_environment(word, value):
    """The usual words for on and off are understood."""
    assert load_settings(environ={"VMFEST_DURATIONS": word}).durations is value


def test_machines_resume_unless_it_is_said():
    """Cold starts have to be asked for, in any of the places."""
    assert load_settings(environ={}).cold is False
    assert load_settings(environ={"VMFEST_COLD": "1"}).cold is True
    assert load_settings(command_line={"vm_cold": True}.get, environ={}).cold is True
    assert load_settings(ini={"vm_cold": "true"}.get, environ={"VMFEST_COLD": "0"}).cold is False


def test_patterns_are_one_a_line():
    """A regular expression may hold blanks."""
    settings = load_settings(environ={"VMFEST_CONSOLE_PATTERNS": " disk error\n\n(?i)fatal: .* "})
    assert settings.console_patterns == ("disk error", "(?i)fatal: .*")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("VMFEST_ACCEL", "warp", "one of auto, kvm, tcg"),
        ("VMFEST_HARDWARE", "huge", "one of micro, small, medium, large"),
        ("VMFEST_NETWORK", "wifi", "one of local, bridged, nat, internal"),
        ("VMFEST_LOCAL_INTERFACE", "eth0", "vboxnet0, vboxnet1 or so"),
        ("VMFEST_BOOT_TIMEOUT", "-1", "a positive number of seconds"),
        ("VMFEST_BOOT_TIMEOUT", "inf", "a positive number of seconds"),
        ("VMFEST_BOOT_RETRIES", "-1", "a whole number, 0 or more"),
        ("VMFEST_BOOT_RETRIES", "twice", "a whole number, 0 or more"),
        ("VMFEST_DURATIONS", "perhaps", "true or false"),
        ("VMFEST_IMAGE", " ", "at least one value"),
        ("VMFEST_CONSOLE_WATCH", "bark", "one of fail, warn, off"),
        ("VMFEST_CONSOLE_PATTERNS", "fine\n(unclosed", "a regular expression (missing ), "),
    ],
)
def test_wrong_values_name_their_place(variable, value, expected):
    """The error names the variable and what would be right."""
    with pytest.raises(ConfigurationError, match=variable) as caught:
        load_settings(environ={variable: value})
    assert expected in str(caught.value)


def test_the_store_follows_vmfest_home(tmp_path, monkeypatch):
    """VMFEST_HOME moves the store; else it is in the user's cache folder."""
    assert store_home({"VMFEST_HOME": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store_home({}) == tmp_path / "cache" / "vmfest"
