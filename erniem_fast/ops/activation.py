"""Bias, an activation and dropout in one operation."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .backend import check_devices, check_rows, check_vectors, runs_kernels
from .dropout import Dropout, check_dropout, dropout_rows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
"""Those that the operations compute, by torch."""


def bias_activation_dropout(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "gelu",
    dropout: Dropout | None = None,
    backend: str = "auto",
) -> Tensor:
    """dropout(activation(x + bias)).

    Args:
        x: (total_tokens, intermediate_size), the product of a linear layer.
        bias: (intermediate_size,) of that layer, where it has not been added yet.
        activation: "gelu", the exact one (Hendrycks and Gimpel, arXiv 1606.08415), or "relu".
        dropout: None for none.
        backend: "auto", "triton" or "torch".

    Returns:
        (total_tokens, intermediate_size).

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown activation or backend.
    """
    check_rows("x", x)
    check_vectors(x.shape[1], bias=bias)
    check_activation(activation)
    check_devices(x=x, bias=bias)
    check_dropout(dropout, x.device)
    if runs_kernels(backend, x, bias):
        from ..kernels import activation as kernel

        return kernel.bias_activation_dropout(x, bias, activation, dropout)  # type: ignore[no-any-return]
    return dropout_rows(ACTIVATIONS[activation](x if bias is None else x + bias), dropout)


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
