"""What is said of an image: keys and types, sidecar files, and vmfest's own .meta files."""

from pathlib import Path

import pytest

from pytest_vmfest.errors import ConfigurationError
from pytest_vmfest.images.meta_file import parse_edn, read_meta_file
from pytest_vmfest.images.metadata import METADATA_KEYS, check_metadata, read_sidecar, sidecar_of

# As vmfest's documentation shows them and as it wrote them.
PUBLISHED = """
{:os-type-id "Ubuntu_64", :os-family :ubuntu, :os-version "10.10" ; maverick
 :os-64-bit true, :username "user", :password "superduper", :sudo-password "sud\\"o",
 :no-sudo false, :packager :apt, :description "Ubuntu 10.10 (64bit)"}
"""
WRITTEN = (
    '{:debian-6.0.2.1-64bit-v0.3 {:os-type-id "Debian_64" :uuid "/home/u/.vmfest/models/x.vdi" '
    ':os-family :debian :os-version "6.0.2.1" :no-sudo nil :network-type :local}}'
)


def refuse_notes(note):
    """For files of which everything is understood."""
    raise AssertionError(note)


def test_published_meta_file():
    """A bare map of properties is read by our names for them."""
    assert read_meta_file(PUBLISHED, "a.meta", refuse_notes) == {
        "os_type": "Ubuntu_64",
        "os_family": "ubuntu",
        "os_version": "10.10",
        "os_64_bit": True,
        "username": "user",
        "password": "superduper",
        "sudo_password": 'sud"o',
        "no_sudo": False,
        "packager": "apt",
        "description": "Ubuntu 10.10 (64bit)",
    }


def test_meta_file_of_an_installed_model():
    """A map under the image's name is read too; what means nothing here is told of, and left out."""
    notes = []
    metadata = read_meta_file(WRITTEN, "a.meta", notes.append)
    assert metadata == {
        "os_type": "Debian_64",
        "os_family": "debian",
        "os_version": "6.0.2.1",
        "no_sudo": None,
        "os_64_bit": True,
    }
    assert notes == ["a.meta: :network-type is left out, it means nothing here"]


def test_os_type_tells_the_word_size():
    """Where :os-64-bit is missing, the OS type's name tells it."""
    assert read_meta_file('{:os-type-id "Ubuntu"}', "a", refuse_notes)["os_64_bit"] is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{:a {"b" [1 -2 +3 4N]}, :c nil}', {"a": {"b": [1, -2, 3, 4]}, "c": None}),
        ("[1.5 2e3 2.5M true false]", [1.5, 2000.0, 2.5, True, False]),
        (r'"tab\t quote\" slash\\ \u00e9 nl\n"', 'tab\t quote" slash\\ é nl\n'),
        ("[:os-64-bit? :a/b :ubuntu-12.04]", ["os-64-bit?", "a/b", "ubuntu-12.04"]),
        (",, {} ; the end", {}),
    ],
)
def test_edn_values(text, value):
    """Maps, vectors, keywords, strings, numbers, true, false and nil are read."""
    assert parse_edn(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "ends in the middle"),
        ("{:a", "ends in the middle"),
        ("{:a}", "has no value"),
        ("{:a 1 :a 2}", "the same key twice"),
        ("{1 2}", "no keyword or string"),
        ("{:a 1} {:b 2}", "nothing may follow"),
        ('{:a "b}', "a string without an end"),
        (r'"\q"', "unknown escape"),
        ('{:a\n (System/exit 1)}', "line 2: a value is expected, not '"),
        ('#=(eval (System/exit 1))', "a value is expected"),
        ('#inst "2020"', "a value is expected"),
        ("#{1}", "a value is expected"),
        ("{:a 'b}", "a value is expected"),
        ("{:a symbol}", "'symbol' is neither"),
        ("{:a : }", "':' is neither"),
        ("[" * 100000, "nested too deeply"),
        ("9" * 100000, "."),
    ],
)  # fmt: skip
def test_nothing_else_is_read_let_alone_evaluated(text, why):
    """Lists, symbols, tagged and broken values are errors that tell the line."""
    with pytest.raises(ValueError, match=why):
        parse_edn(text)


@pytest.mark.parametrize("text", ["[1]", '{"os-family" "debian"}', "nil", ":debian"])
def test_a_meta_file_has_to_be_a_map_of_properties(text):
    """Valid EDN that says nothing of an image is refused."""
    with pytest.raises(ValueError, match="not a map of properties"):
        read_meta_file(text, "a.meta", refuse_notes)


def test_sidecars(tmp_path):
    """Found beside a disk are a.toml, a.vdi.meta and a.meta, in this order; nothing if there is none."""
    disk = tmp_path / "debian-6.0.vdi"
    assert sidecar_of(disk) is None
    for name in ("debian-6.0.meta", "debian-6.0.vdi.meta", "debian-6.0.toml"):
        (tmp_path / name).touch()
        assert sidecar_of(disk) == tmp_path / name


def test_toml_sidecar(tmp_path):
    """A TOML sidecar has the metadata keys; a relative private key is beside it."""
    path = tmp_path / "a.toml"
    path.write_text('os_family = "debian"\nos_64_bit = false\nprivate_key = "keys/id"\n')
    assert read_sidecar(path, refuse_notes) == {
        "os_family": "debian",
        "os_64_bit": False,
        "private_key": tmp_path / "keys/id",
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"os_family = ", "cannot be read"),
        ("a.toml", b"\xff\xfe", "cannot be read"),
        ("a.toml", b'os_famly = "debian"', "unknown key 'os_famly'"),
        ("a.meta", b'{:os-family "debian"\n', "line 2"),
        ("a.meta", b'{:no-sudo "no"}', "no_sudo: 'no' is not valid"),
    ],
)
def test_a_broken_sidecar_is_told(tmp_path, name, content, said):
    """A sidecar that cannot be understood is an error that names it, and never ignored."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_sidecar(path, refuse_notes)
    assert str(path) in str(caught.value)


def test_every_key_is_accepted():
    """The keys that an image can be described by, with what they may hold; None means not said."""
    metadata = {
        "os_family": "debian", "os_version": "12", "os_64_bit": True, "os_type": "Debian_64",
        "packager": "apt", "description": "d", "username": "u", "password": "p", "private_key": "/k",
        "sudo_password": "s", "no_sudo": False, "network": "nat", "hardware": "small", "firmware": "efi",
        "host_key": "ssh-ed25519 AAAA",
    }  # fmt: skip
    assert set(metadata) == set(METADATA_KEYS)
    assert check_metadata(metadata, "here") == {**metadata, "private_key": Path("/k")}
    assert check_metadata(dict.fromkeys(METADATA_KEYS), "here") == {}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("os_version", 12, "a text"),
        ("os_64_bit", "yes", "true or false"),
        ("network", "wifi", "local, bridged, nat, internal"),
        ("firmware", "uefi", "bios, efi"),
        ("private_key", 1, "the path"),
        ("host_key", "AAAA", "OpenSSH"),
    ],
)
def test_wrong_types_are_told(key, value, expected):
    """A value of the wrong kind is an error that names place, key, value and what is expected."""
    with pytest.raises(ConfigurationError) as caught:
        check_metadata({key: value}, "metadata")
    message = str(caught.value)
    assert f"metadata: {key}: {value!r} is not valid" in message
    assert expected in message


def test_passwords_stay_out_of_messages():
    """A password of the wrong type is not repeated."""
    with pytest.raises(ConfigurationError) as caught:
        check_metadata({"sudo_password": 123456}, "metadata")
    assert "123456" not in str(caught.value)


def test_unknown_keys_list_the_known_ones():
    """An unknown key is an error that lists what is allowed."""
    with pytest.raises(ConfigurationError, match="unknown key 'user'") as caught:
        check_metadata({"user": "root"}, "metadata")
    assert all(key in caught.value.hint for key in METADATA_KEYS)
