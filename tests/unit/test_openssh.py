"""The ``ssh`` command that people are given."""

from pytest_vmfest.openssh import ssh_words
from pytest_vmfest.specs import Endpoint, Login

KEY = "ssh-ed25519 AAAA"


def known(endpoint):
    """The host that the command knows a key for."""
    words = ssh_words(endpoint, Login(host_key=KEY))
    (option,) = [word for word in words if word.startswith("KnownHostsCommand=/bin/echo ")]
    assert option.endswith(f" {KEY}")
    assert "StrictHostKeyChecking=yes" in words
    return option.removeprefix("KnownHostsCommand=/bin/echo ").removesuffix(f" {KEY}")


def test_the_host_is_called_as_ssh_looks_it_up():
    """With its port, unless that is the usual one."""
    assert known(Endpoint("127.0.0.1", 2222)) == "[127.0.0.1]:2222"
    assert known(Endpoint("192.168.56.101", 22)) == "192.168.56.101"


def test_without_a_key_any_is_taken():
    """As nothing is known of the guest."""
    assert "StrictHostKeyChecking=no" in ssh_words(Endpoint("h", 22), Login())
