"""Dropout, residual addition and layer-norm by torch, against plain formulas in float64."""

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
    dropout = Dropout(p, ops.draw_seed(CPU), 1) if p else None
    x, residual, weight, bias, linear_bias = leaf(9, 21), leaf(9, 21), leaf(21), leaf(21), leaf(21)
    found = ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-5, linear_bias=linear_bias, dropout=dropout)
    expected = F.layer_norm(residual + drop_rows(x + linear_bias, dropout), (21,), weight, bias, 1e-5)
    assert_agrees(found, expected, [x, residual, weight, bias, linear_bias])
    found = ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-3, dropout=dropout)
    expected = F.layer_norm(residual + drop_rows(x, dropout), (21,), weight, bias, 1e-3)
    assert_agrees(found, expected, [x, residual, weight, bias])


def test_no_rows() -> None:
    x, weight = torch.randn(0, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    out = ops.dropout_add_layer_norm(x, x, weight, weight, 1e-5, dropout=Dropout(0.5, ops.draw_seed(CPU), 1))
    out.sum().backward()
    assert out.shape == x.grad.shape == (0, 8)  # type: ignore[union-attr]
