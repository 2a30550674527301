"""Long lists of cases: every run tries some of them, the proofs try all."""

import pytest

# The argument `every`: a test takes one case in so many.
shares = pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.proof)], ids=["some", "all"])
