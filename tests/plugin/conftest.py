"""How the plugin's tests run pytest as a user does: on the fake driver, with a store of their own."""

import pytest


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """Keep the user's store and settings out of these tests."""
    monkeypatch.setenv("VMFEST_HOME", str(tmp_path / "vmfest-home"))
    for name in (
        "VMFEST_IMAGE",
        "VMFEST_KEEP",
        "VMFEST_HARDWARE",
        "VMFEST_ARTIFACTS",
        "VMFEST_CONSOLE_WATCH",
        "VMFEST_BOOT_RETRIES",
        "VMFEST_COLD",
        "VMFEST_SPARES",
        "PYTEST_XDIST_WORKER",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_fake(pytester):
    """Run pytest in a process of its own on the fake driver; returns its result."""

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("--vm-driver", "fake", "-p", "no:cacheprovider", *arguments)

    return run
