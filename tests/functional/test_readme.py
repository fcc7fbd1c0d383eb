"""The README's first example is so."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.usefixtures("own_home")
def test_the_first_example_passes_as_it_stands(pytester):
    """What a newcomer copies from the top of the README passes on real machines."""
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example is not None
    pytester.makepyfile(example[1])
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
