"""VirtualBox's errors as ours."""

import errno

import pytest
from virtualbox.library import VBoxErrorObjectNotFound

from pytest_vmfest.drivers.virtualbox import trouble
from pytest_vmfest.errors import DriverError, DriverUnavailableError, StoreError


class XpcomError(Exception):
    """As XPCOM's bindings raise them: a negative number and a text."""

    def __init__(self, number, msg):
        super().__init__(msg)
        self.errno = number - (1 << 32)
        self.msg = msg


def pyvbox_error(text):
    """As pyvbox raises them."""
    error = VBoxErrorObjectNotFound()
    error.msg = text
    return error


@pytest.mark.parametrize("error", [pyvbox_error("no such"), XpcomError(0x80BB0001, "no such")])
def test_both_kinds_of_errors_have_code_and_text(error):
    """Whatever layer an error comes from, its code is the API's and its text VirtualBox's own."""
    assert trouble.code_of(error) == trouble.OBJECT_NOT_FOUND
    assert trouble.text_of(error) == "no such"
    assert trouble.ignoring(error, trouble.OBJECT_NOT_FOUND, trouble.FILE_ERROR)
    assert not trouble.ignoring(error, trouble.FILE_ERROR)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ENOENT, "x"), KeyError("x")])
def test_others_errors_are_not_virtualboxs(error):
    """What is not VirtualBox's passes as it is."""
    assert trouble.code_of(error) is None
    with pytest.raises(type(error)), trouble.translated("doing it"):
        raise error


def test_the_code_around_a_text_is_taken_off():
    """The bindings put the code before the text."""
    assert trouble.text_of(XpcomError(0x80BB0002, "0x80bb0002 (It is off)")) == "It is off"


def test_a_translated_error_has_what_was_done_and_virtualboxs_words():
    """And where something is known to help, the hint says it."""
    with pytest.raises(DriverError) as caught, trouble.translated("machine 'm' cannot be started"):
        raise XpcomError(0x80004005, "The VM cannot run (VERR_VMX_IN_VMX_ROOT_MODE)")
    assert caught.value.message.startswith("machine 'm' cannot be started: The VM cannot run (VERR_VMX_IN_")
    assert "modprobe -r kvm_intel" in caught.value.hint


def test_a_service_that_is_gone():
    """A dead line is told as such, with how to go on."""
    error = XpcomError(0x800706BE, "NS_ERROR_CALL_FAILED")
    assert trouble.is_dead(error)
    with pytest.raises(DriverUnavailableError, match=r"VBoxSVC.*does not answer any more") as caught:
        raise trouble.as_ours(error, "listing")
    assert caught.value.hint.startswith("run again;")  # this process finds no other service


def test_a_full_disk_is_the_stores_trouble():
    """So that it is told as that everywhere."""
    assert isinstance(trouble.told("cloning", "write failed (VERR_DISK_FULL)"), StoreError)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("the VirtualBox kernel driver is not loaded (VERR_VM_DRIVER_NOT_INSTALLED)", "modprobe vboxdrv"),
        ("Kernel driver not installed (rc=-1908)", "modprobe vboxdrv"),
        (
            "The VirtualBox Linux kernel driver is either not loaded or not set up correctly",
            "modprobe vboxdrv",
        ),
        ("WARNING: The character device /dev/vboxdrv does not exist.", "modprobe vboxdrv"),
        ("no medium {12345678-1908-4000-8000-123456789012}", ""),
        ("00:00:01 vboxdrv: the module is loaded, version 7.2.22", ""),
        ("VERR_SVM_IN_USE", "kvm_amd"),
        ("AMD-V is not available", "firmware"),
        ("Failed to open /dev/vboxnetctl", "vboxnetadp"),
        ("something else", ""),
    ],
)
def test_remedies(text, remedy):
    """Known trouble has a remedy, other trouble none."""
    assert remedy in trouble.remedy_for(text)
    assert bool(remedy) == bool(trouble.remedy_for(text))


def test_null_objects():
    """Null is null also under pyvbox's wrapper, which is true."""
    from virtualbox.library import IMedium

    assert trouble.is_null(None)
    assert trouble.is_null(IMedium(None))
    assert not trouble.is_null(IMedium(object()))
