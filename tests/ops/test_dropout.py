"""Dropout's masks against an independent Philox."""

from typing import Any

import pytest
import torch
from helpers import philox
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast import ops
from erniem_fast.kernels import dropout as dropout_kernel
from erniem_fast.ops import Dropout


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**62 - 1),
    site=st.integers(0, 2**31),
    start=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    p=st.floats(0, 0.999999),
)
def test_masks_are_philox(seed: int, site: int, start: int, rows: int, columns: int, p: float) -> None:
    drawn_seed = torch.tensor([seed])
    found = dropout_kernel.keep_rows(drawn_seed, site, torch.arange(start, start + rows), columns, p)
    assert torch.equal(found, philox.keep_rows(drawn_seed, site, start, rows, columns, p))
    scores = dropout_kernel.keep_scores(drawn_seed, site, torch.tensor([3, start]), 2, columns, p)
    for head in range(2):
        expected = philox.keep_scores(drawn_seed, site, start, head, columns, columns, p)
        assert torch.equal(scores[1, head], expected)


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        (Dropout(0.1, None, 0), "dropout.seed must be .* got None"),  # type: ignore[arg-type]
        (Dropout(0.1, torch.tensor([1.0]), 0), "dropout.seed must be .* got torch.float32"),
        (Dropout(0.1, torch.tensor([1, 2]), 0), r"dropout.seed must be .* got torch.int64 \(2,\)"),
        (Dropout(0.1, torch.zeros(1, dtype=torch.int64, device="meta"), 0), "dropout.seed must be on cpu.* got meta"),
        (Dropout(1.0, torch.tensor([1]), 0), r"dropout.p must lie in \[0, 1\), got 1.0"),
        (Dropout(-0.1, torch.tensor([1]), 0), r"dropout.p must lie in \[0, 1\), got -0.1"),
    ],
)
@pytest.mark.parametrize("operation", ["bias_activation_dropout", "varlen_attention", "mlp"])
def test_a_bad_dropout_is_refused(dropout: Dropout, message: str, operation: str) -> None:
    arguments: dict[str, Any] = {
        "bias_activation_dropout": (torch.randn(4, 6),),
        "varlen_attention": (torch.randn(4, 3, 1, 8), torch.tensor([0, 4], dtype=torch.int32), 4),
        "mlp": (torch.randn(4, 6), torch.randn(8, 6), torch.randn(8), torch.randn(6, 8)),
    }
    with pytest.raises(ValueError, match=message):
        getattr(ops, operation)(*arguments[operation], dropout=dropout)
