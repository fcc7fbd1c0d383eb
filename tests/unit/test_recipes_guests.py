"""What goes into the guests, as far as it can be judged without starting one."""

import re

from paramiko import Transport

from pytest_vmfest.images.recipes.debian12 import _last_news
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
    """Its news are shown without the dots, and packages' own output is not."""
    assert _last_news("") == "installing Debian"
    assert _last_news("I: running apt-get update...\nSetting up x ...\n") == "running apt-get update"
    assert _last_news("I: one...\nI: extracting archives...\n") == "extracting archives"
