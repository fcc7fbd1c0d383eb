"""What goes into the guests, as far as it can be judged without starting one."""

import re
from xml.etree import ElementTree

from paramiko import Transport

from pytest_vmfest.images.recipes import debian12, virtualbox_host
from pytest_vmfest.images.recipes.apt import Mirrors
from pytest_vmfest.images.recipes.debian import _last_news
from pytest_vmfest.images.recipes.initrd import GUEST


def test_tinys_ssh_speaks_what_the_client_speaks():
    """Of each kind of algorithm that tiny's server allows, the client has one."""
    config = (GUEST / "tiny/etc/ssh/sshd_config").read_text()
    allowed = {key: value.split(",") for key, value in re.findall(r"^(\w+) (\S+)$", config, re.MULTILINE)}
    for key, ours in {
        "KexAlgorithms": Transport._preferred_kex,
        "Ciphers": Transport._preferred_ciphers,
        "MACs": Transport._preferred_macs,
        "HostKeyAlgorithms": Transport._preferred_keys,
    }.items():
        assert set(allowed[key]) & set(ours), key


def test_tinys_users_and_groups_fit():
    """Each user has a group and a line in shadow; nobody but root can log in without a password."""

    def lines(name):
        return [line.split(":") for line in (GUEST / f"tiny/etc/{name}").read_text().splitlines()]

    users, shadow = lines("passwd"), {fields[0]: fields[1] for fields in lines("shadow")}
    assert {user[3] for user in users} <= {group[2] for group in lines("group")}
    assert shadow == {user[0]: "" if user[0] == "root" else "*" for user in users}


def test_progress_tells_what_mmdebstrap_said_last():
    """Its news are shown without dots and without commands, and packages' own output is not."""
    assert _last_news("") == "installing Debian"
    assert _last_news("I: running apt-get update...\nSetting up x ...\n") == "running apt-get update"
    assert _last_news("I: running --customize-hook in shell: sh -c 'rm -rf ...\n") == (
        "running --customize-hook in shell"
    )
    assert _last_news("I: one...\nI: extracting archives...\n") == "extracting archives"


def test_debians_come_from_the_hosts_mirrors():
    """Stable has its updates, and security's where the host has a source of them; unstable has neither."""
    archive, security = "http://archive", "http://security"
    stable = debian12.RECIPE.sources(Mirrors(archive, security))
    assert stable == [
        f"deb {archive} bookworm main",
        f"deb {archive} bookworm-updates main",
        f"deb {security} bookworm-security main",
    ]
    assert debian12.RECIPE.sources(Mirrors(archive, None)) == stable[:2]
    assert virtualbox_host.RECIPE.sources(Mirrors(archive, security)) == [f"deb {archive} sid main contrib"]


def test_virtualbox_finds_its_settings():
    """The file that is put in root's home has the settings by which nested machines run, each once."""
    file = GUEST / "virtualbox-host/root/.config/VirtualBox/VirtualBox.xml"
    items = ElementTree.parse(file).findall(".//{http://www.virtualbox.org/}ExtraDataItem")
    settings = {item.attrib["name"]: item.attrib["value"] for item in items}
    assert len(settings) == len(items) == 6
    assert all(name.startswith("VBoxInternal/TM/") for name in settings)
    assert settings["VBoxInternal/TM/TSCMode"] == "RealTSCOffset"
