r"""A driver without a hypervisor: machines are made of memory, and start at once.

For users who test their own fixtures, and for the tests of this package::

    from pytest_vmfest import Server
    from pytest_vmfest.drivers.fake import FakeFault

    with Server(driver="fake") as server:
        server.driver.respond(r"systemctl is-active (\S+)", "active\n")
        server.driver.inject(FakeFault.DIES, machine="db-*", times=1)

It keeps the same contract as the real drivers. Its guests have files, and a small shell: commands in sequence
with redirections and variables, and a few everyday commands (`commands.py`). Any other command or syntax
ends with status 127; `FakeDriver.respond` teaches the guests what to answer.
"""

from pytest_vmfest.drivers.fake.driver import FakeDriver
from pytest_vmfest.drivers.fake.world import FakeCall, FakeFault

__all__ = ["FakeCall", "FakeDriver", "FakeFault"]
