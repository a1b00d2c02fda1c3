"""Bias, activation and dropout by torch, against plain formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers.formulas import assert_agrees, drop_rows
from torch import Tensor

from erniem_fast import ops
from erniem_fast.ops import Dropout

CPU = torch.device("cpu")


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_forward_and_backward(p: float) -> None:
    dropout = Dropout(p, ops.draw_seed(CPU), 3) if p else None
    x, bias = leaf(9, 21), leaf(21)
    biased = x + bias
    expected = drop_rows(biased * (1 + torch.erf(biased / 2**0.5)) / 2, dropout)
    assert_agrees(ops.bias_activation_dropout(x, bias, dropout=dropout), expected, [x, bias])
    assert_agrees(ops.bias_activation_dropout(x, dropout=dropout), drop_rows(F.gelu(x), dropout), [x])
    expected = drop_rows((biased + biased.abs()) / 2, dropout)
    assert_agrees(ops.bias_activation_dropout(x, bias, activation="relu", dropout=dropout), expected, [x, bias])


def test_dropout_probability_near_one_keeps_finite_values() -> None:
    x = torch.rand(64, 64) + 1
    out = ops.bias_activation_dropout(x, dropout=Dropout(0.999999, ops.draw_seed(CPU), 0))
    assert out.isfinite().all()
