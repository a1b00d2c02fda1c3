"""Floats in JSON."""

import json
from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from erniem_fast.inference.server.floats import dump_floats

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=FINITE))
def test_floats_are_read_back_exactly(values: np.ndarray) -> None:
    found = np.array(json.loads(dump_floats(values)), dtype=np.float32)
    assert found.shape == values.shape
    assert np.array_equal(found, values)


def test_floats_take_few_digits() -> None:
    values = np.random.default_rng().standard_normal((20, 50)).astype(np.float32)
    written = dump_floats(values).decode().strip("[]").replace("],[", ",").split(",")
    assert max(len(Decimal(text).normalize().as_tuple().digits) for text in written) == 9


def test_no_rows_are_an_empty_list() -> None:
    assert dump_floats(np.zeros((0, 3), np.float32)) == b"[]"
