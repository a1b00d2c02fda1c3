"""Dropout, residual addition and layer-norm in one operation."""

import torch.nn.functional as F
from torch import Tensor

from .backend import check_devices, check_rows, check_vectors, needs_grad, runs_kernels
from .dropout import Dropout, check_dropout, dropout_rows


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    linear_bias: Tensor | None = None,
    dropout: Dropout | None = None,
    backend: str = "auto",
) -> Tensor:
    """layer_norm(residual + dropout(x + linear_bias)).

    Args:
        x: (total_tokens, hidden_size), the product of a linear layer.
        residual: like `x`.
        weight, bias: (hidden_size,) of the layer-norm.
        eps: epsilon of the layer-norm.
        linear_bias: (hidden_size,) of the linear layer before, where it has not been added yet.
        dropout: None for none.
        backend: "auto", "triton" or "torch".

    Returns:
        (total_tokens, hidden_size).

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown backend.
    """
    check_rows("x", x)
    if residual.shape != x.shape:
        raise ValueError(f"residual must have shape {tuple(x.shape)} (that of x), got {tuple(residual.shape)}")
    check_vectors(x.shape[1], weight=weight, bias=bias, linear_bias=linear_bias)
    check_devices(x=x, residual=residual, weight=weight, bias=bias, linear_bias=linear_bias)
    check_dropout(dropout, x.device)
    if runs_kernels(backend, x, residual, weight, bias, linear_bias, hidden_size=x.shape[1]):
        from ..kernels import layer_norm as kernel

        save = needs_grad(x, residual, weight, bias, linear_bias)
        y: Tensor = kernel.dropout_add_layer_norm(x, residual, weight, bias, linear_bias, eps, dropout, save)[0]
        return y
    x = x if linear_bias is None else x + linear_bias
    return F.layer_norm(dropout_rows(x, dropout) + residual, weight.shape, weight, bias, eps)
