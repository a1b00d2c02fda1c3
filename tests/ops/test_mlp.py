"""The feed-forward block by torch, against plain formulas in float64."""

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
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_forward_and_backward(p: float, with_bias: bool, activation: str) -> None:
    dropout = Dropout(p, ops.draw_seed(CPU), 3) if p else None
    x, weight1, bias1, weight2, bias2 = leaf(9, 6), leaf(14, 6), leaf(14), leaf(6, 14), leaf(6)
    given = bias2 if with_bias else None
    found = ops.mlp(x, weight1, bias1, weight2, given, activation=activation, dropout=dropout)
    inner = drop_rows(getattr(F, activation)(x @ weight1.T + bias1), dropout)
    expected = inner @ weight2.T + (bias2 if with_bias else 0)
    assert_agrees(found, expected, [x, weight1, bias1, weight2, *([bias2] if with_bias else [])])
