"""The feed-forward block as one operation."""

import torch.nn.functional as F
from torch import Tensor

from . import rows_cpu
from .activation import ACTIVATIONS, bias_activation_dropout, check_activation
from .backend import (
    autocast,
    check_devices,
    check_residual,
    check_rows,
    check_vectors,
    is_batch_invariant,
    needs_grad,
    runs_kernels,
)
from .dropout import Dropout, check_dropout, dropout_rows


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None = None,
    *,
    activation: str = "gelu",
    dropout: Dropout | None = None,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """residual + dropout(activation(x weight1^T + bias1)) weight2^T + bias2: the feed-forward block.

    For backward the kernels keep the first product and nothing else of that width.

    Args:
        x: (total_tokens, hidden_size).
        weight1: (intermediate_size, hidden_size).
        bias1: (intermediate_size,).
        weight2: (hidden_size, intermediate_size).
        bias2: (hidden_size,); None where the operation that follows adds it.
        activation: "gelu", the exact one, or "relu".
        dropout: None for none.
        residual: (total_tokens, hidden_size); None: nothing is added.
        backend: "auto", "triton" or "torch".

    Returns:
        (total_tokens, hidden_size).

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown activation or backend.
    """
    check_rows("x", x)
    size = bias1.shape[0] if bias1.dim() == 1 else 0
    for name, weight, shape in (
        ("weight1", weight1, (size, x.shape[1])),
        ("weight2", weight2, (*weight2.shape[:1], size)),
    ):
        if weight.shape != shape:
            raise ValueError(
                f"{name} must fit x {tuple(x.shape)} and bias1 {tuple(bias1.shape)}, got {tuple(weight.shape)}"
            )
    check_vectors(weight2.shape[0], bias2=bias2)
    check_residual(residual, x.shape[0], weight2.shape[0])
    check_activation(activation)
    check_devices(x=x, residual=residual, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    check_dropout(dropout, x.device)
    if not runs_kernels(backend, x, weight1, bias1, weight2):
        if dropout is None and rows_cpu.takes(x, weight1, bias1, weight2, bias2, residual):
            return rows_cpu.add_mlp(x, weight1, bias1, weight2, bias2, activation, residual)
        inner = dropout_rows(ACTIVATIONS[activation](F.linear(x, weight1, bias1)), dropout)
        out = F.linear(inner, weight2, bias2)
    elif is_batch_invariant():  # which computes F.linear by a kernel that adds up in one order
        product = F.linear(x, weight1)
        inner = bias_activation_dropout(product, bias1, activation=activation, dropout=dropout)
        out = F.linear(inner, weight2, bias2)
    else:
        from ..kernels import mlp as kernel

        operands = autocast(x, weight1, bias1, weight2)
        out = kernel.mlp(*operands, activation, dropout, needs_grad(*operands))[0]
        out = out if bias2 is None else out + bias2
    return out if residual is None else residual + out
