"""Dropout by NumPy: the masks of every backend, and where torch must see what happens, torch's operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast import ops
from erniem_fast.kernels import dropout
from erniem_fast.ops import dropout_cpu

seeds = st.integers(0, 2**62 - 1).map(lambda value: torch.tensor([value]))
sites = st.integers(0, 2**32 - 1)
probabilities = st.floats(0.0, 0.999)


@settings(max_examples=25)
@given(seeds, sites, probabilities, st.integers(1, 300), st.integers(1, 70))
def test_masks_of_rows(seed: Tensor, site: int, p: float, rows: int, columns: int) -> None:
    expected = dropout.keep_rows(seed, site, torch.arange(rows), columns, p)
    assert torch.equal(dropout_cpu.keep_rows(seed, site, rows, columns, p), expected)


@settings(max_examples=25)
@given(seeds, sites, probabilities, st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4), st.integers(1, 3),
       st.integers(1, 180))  # fmt: skip
def test_masks_of_scores(seed: Tensor, site: int, p: float, starts: list[int], num_heads: int, length: int) -> None:
    first = torch.tensor(starts, dtype=torch.int32)
    expected = dropout.keep_scores(seed, site, first, num_heads, length, p).flatten(0, 1)
    assert torch.equal(dropout_cpu.keep_scores(seed, site, first, num_heads, length, p), expected)


def test_masks_of_more_than_one_block() -> None:
    seed = torch.randint(2**62, (1,))
    assert torch.equal(
        dropout_cpu.keep_rows(seed, 3, 300, 768, 0.3), dropout.keep_rows(seed, 3, torch.arange(300), 768, 0.3)
    )
    starts = torch.tensor([5, 300])
    assert torch.equal(
        dropout_cpu.keep_scores(seed, 3, starts, 4, 130, 0.3),
        dropout.keep_scores(seed, 3, starts, 4, 130, 0.3).flatten(0, 1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_is_what_torch_computes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Outputs and gradients, by NumPy's masks and by torch's; 16 bits are always dropped by torch."""
    offsets = torch.tensor([0, 40, 57, 57, 97], dtype=torch.int32)
    qkv = torch.randn(97, 3, 4, 8, dtype=dtype, requires_grad=True)
    drop = dropout.Dropout(0.4, torch.randint(2**62, (1,)), 5)
    grad = torch.randn(97, 4, 8, dtype=dtype)
    results = []
    for turn in range(2):
        out = ops.varlen_attention(qkv, offsets, 40, dropout=drop)
        results.append((out, *torch.autograd.grad(out, qkv, grad)))
        if not turn:
            monkeypatch.setattr(dropout_cpu, "takes", lambda x: False)
            monkeypatch.setattr(dropout_cpu, "draws", lambda seed: False)
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_second_derivatives_of_dropped_rows_and_scores() -> None:
    drop = dropout.Dropout(0.3, torch.randint(2**62, (1,)), 5)
    offsets = torch.tensor([0, 5, 7], dtype=torch.int32)

    def attention(qkv: Tensor) -> Tensor:
        return ops.varlen_attention(qkv.double(), offsets, 5, dropout=drop)

    qkv = torch.randn(7, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (qkv,))
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ops.dropout.dropout_rows(x, drop).square(), (x,))
