"""Fit the polynomial by which kernels/activation.py computes Phi: `python -m bench.tools.fit_gelu` prints it.

    Phi(-t) = exp2(t P(t) - 1), t >= 0, so P(t) = log2(erfc(t / sqrt 2)) / t

Weighted least squares, reweighted by their own errors until the largest is smallest (Lawson, 1961): of gelu, of its
gradient, of which Phi is a part, and a little of gelu relative to itself, so that its tail holds in bfloat16.
"""

import math

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

DEGREE = 7
"""Odd: then the leading coefficient is negative, and P goes the right way beyond the last point, too."""
END = 5.7
GRADIENT, RELATIVE = 0.5, 1e-5
"""Weights of an error of Phi in the gradient, and of a relative error of gelu, beside an error of gelu of weight 1."""
POINTS, ROUNDS = 4000, 60


def fit() -> tuple[list[float], float]:
    """Coefficients of P, the highest power first, and the largest weighted error."""
    t = END / 2 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))
    exact = np.array([math.log2(math.erfc(point / math.sqrt(2))) for point in t]) / t
    phi = np.exp2(t * exact - 1)
    weight = math.log(2) * t * np.maximum(phi * np.maximum(t, GRADIENT), RELATIVE)
    share = np.ones(POINTS)
    for _ in range(ROUNDS):
        found = Chebyshev.fit(t, exact, DEGREE, domain=[0, END], w=weight * np.sqrt(share))
        error: NDArray[np.float64] = np.abs((found(t) - exact) * weight)
        share *= error / error.max()
        share /= share.mean()
    return [float(one) for one in found.convert(kind=Polynomial).coef[::-1]], float(error.max())


if __name__ == "__main__":
    coefficients, largest = fit()
    print(*(f"{one:.9g}" for one in coefficients), sep=", ")
    print(f"largest weighted error {largest:.2e}")
