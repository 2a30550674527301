"""Long lists of cases: every run tries some of them, the proofs try all."""

import pytest

# The argument `every`: of a list, each one whose number it divides.
shares = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.proof)], ids=["some", "all"])
