"""The feed-forward block by torch, against plain formulas in float64."""

from importlib import import_module

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


def test_inference_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows are split, each is computed once."""
    monkeypatch.setattr(import_module("erniem_fast.ops.mlp"), "ROWS_PER_PIECE", 4)
    x, weight1, bias1, weight2, bias2 = leaf(11, 6), leaf(14, 6), leaf(14), leaf(6, 14), leaf(6)
    expected = ops.mlp(x, weight1, bias1, weight2, bias2)
    with torch.no_grad():
        for rows in (11, 4, 3, 0):
            found = ops.mlp(x[:rows], weight1, bias1, weight2, bias2)
            torch.testing.assert_close(found, expected[:rows], rtol=0, atol=1e-12)
