"""The feed-forward block as one operation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import ACTIVATIONS, bias_activation_dropout, check_activation
from .backend import autocast, check_devices, check_rows, check_vectors, is_batch_invariant, needs_grad, runs_kernels
from .dropout import Dropout, check_dropout, dropout_rows

ROWS_PER_PIECE = 1024
"""Rows that a CPU takes through the block at once in inference: the wide activations should stay near its cache."""


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor | None = None,
    *,
    activation: str = "gelu",
    dropout: Dropout | None = None,
    backend: str = "auto",
) -> Tensor:
    """dropout(activation(x weight1^T + bias1)) weight2^T + bias2: the feed-forward block.

    For backward the kernels keep the first product and nothing else of that width.

    Args:
        x: (total_tokens, hidden_size).
        weight1: (intermediate_size, hidden_size).
        bias1: (intermediate_size,).
        weight2: (hidden_size, intermediate_size).
        bias2: (hidden_size,); None where the operation that follows adds it.
        activation: "gelu", the exact one, or "relu".
        dropout: None for none.
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
    check_activation(activation)
    check_devices(x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2)
    check_dropout(dropout, x.device)
    if not runs_kernels(backend, x, weight1, bias1, weight2):
        return _mlp_torch(x, weight1, bias1, weight2, bias2, activation, dropout)
    if is_batch_invariant():  # which computes F.linear by a kernel that adds up in one order
        product = F.linear(x, weight1)
        inner = bias_activation_dropout(product, bias1, activation=activation, dropout=dropout)
        return F.linear(inner, weight2, bias2)
    from ..kernels import mlp as kernel

    operands = autocast(x, weight1, bias1, weight2)
    out: Tensor = kernel.mlp(*operands, activation, dropout, needs_grad(*operands))[0]
    return out if bias2 is None else out + bias2


def _mlp_torch(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None, activation: str,
    dropout: Dropout | None,
) -> Tensor:  # fmt: skip
    act = ACTIVATIONS[activation]
    if x.device.type != "cpu" or dropout is not None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(dropout_rows(act(F.linear(x, weight1, bias1)), dropout), weight2, bias2)
    pieces = x.split(ROWS_PER_PIECE) if len(x) > ROWS_PER_PIECE else (x,)
    products = [F.linear(act(F.linear(piece, weight1, bias1)), weight2, bias2) for piece in pieces]
    return products[0] if len(products) == 1 else torch.cat(products)
