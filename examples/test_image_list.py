"""One test, run on each of several images."""

import pytest


@pytest.mark.vm(image=["tiny", "debian-12"], hardware="micro")
def test_the_shell_is_posix(vm_instance):
    """What holds for a shell script holds on every image that it is meant for."""
    assert vm_instance.check_output("x=abc; echo ${x#a}") == "bc"
    assert vm_instance.image.name in ("tiny", "debian-12")
