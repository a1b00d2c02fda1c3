"""The polynomial of the kernels' GELU."""

import pytest

pytest.importorskip("triton")

from bench.tools.fit_gelu import fit
from erniem_fast.kernels.activation import P


def test_the_kernels_hold_what_was_fitted() -> None:
    coefficients, error = fit()
    assert pytest.approx(coefficients, rel=1e-5) == P
    assert error < 2.5e-8
