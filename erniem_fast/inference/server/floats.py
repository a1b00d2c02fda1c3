"""JSON of arrays of float32, digit for digit enough to read the same float32 back."""

import numpy as np
from pydantic_core import to_json

DIGITS = 9
"""Significant digits that tell any two float32 apart."""
LARGEST_POWER = 22
"""10 to this power is the last that float64 holds exactly."""


def dump_floats(values: np.ndarray) -> bytes:
    """Write an array of any shape as nested lists of JSON.

    Args:
        values: finite float32 of any shape.
    """
    return to_json(_rounded(values).tolist())


def _rounded(values: np.ndarray) -> np.ndarray:
    """The float64 of at most 9 significant digits next to each float32: half the bytes of its own digits."""
    wide = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        magnitude = np.floor(np.log10(np.abs(wide)))
    places = DIGITS - 1 - np.where(np.isfinite(magnitude), magnitude, 0)
    # Beyond the exact powers of ten a quotient may miss the decimal: keep all digits there.
    exact = (places >= 0) & (places <= LARGEST_POWER)
    scale = 10.0 ** np.where(exact, places, 0)
    return np.where(exact, np.rint(wide * scale) / scale, wide)
