"""The line to VirtualBox's service, in a process of its own where a test would disturb others'."""

import subprocess
import sys

USED_AFTER_IMPORTS_WERE_TAKEN_BACK = """
import sys
from pathlib import Path

from pytest_vmfest.drivers.base import DriverSettings
from pytest_vmfest.drivers.virtualbox.connection import connect

modules, places = dict(sys.modules), list(sys.path)
before = connect(DriverSettings(Path(sys.argv[1])))
sys.modules.clear()
sys.modules.update(modules)
sys.path[:] = places
after = connect(DriverSettings(Path(sys.argv[1])))
for connection in (before, after):
    connection.session()
    print(connection.vbox.compose_machine_filename("box", "/vmfest", "", ""))
"""


def test_imports_that_are_taken_back(connection, tmp_path):
    """Pytester removes what was imported during its test; lines opened before and after go on working."""
    done = subprocess.run(
        [sys.executable, "-c", USED_AFTER_IMPORTS_WERE_TAKEN_BACK, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = connection.vbox.compose_machine_filename("box", "/vmfest", "", "")
    assert done.stdout.splitlines() == [expected, expected]
