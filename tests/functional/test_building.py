"""Building an image from an empty store, as a newcomer's first test does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_build_tiny_at_once(tmp_path):
    """One builds, the other waits and takes what the first has built; both then have the same image."""
    command = [str(Path(sys.executable).with_name("vmfest")), "image", "build", "tiny"]
    environment = {**os.environ, "VMFEST_HOME": str(tmp_path / "home")}
    builders = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    told = [builder.communicate(timeout=600)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], told
    assert sum("waiting for another process" in text for text in told) == 1, told
    assert sum("unpacking" in text for text in told) == 1, told
    assert [path.name for path in (tmp_path / "home" / "images").iterdir()] == ["tiny"]
