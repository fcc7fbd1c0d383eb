"""One suite, run on every driver."""

import pytest
from labs import QemuLab, kinds, opened


@pytest.fixture(params=kinds(), ids=lambda kind: kind.driver_name)
def lab(request, tmp_path):
    """A lab for each driver."""
    with opened(request.param, tmp_path) as lab:
        yield lab


@pytest.fixture
def qemu_lab(tmp_path):
    """The lab of QEMU, for what only real processes can show."""
    with opened(QemuLab, tmp_path) as lab:
        yield lab
