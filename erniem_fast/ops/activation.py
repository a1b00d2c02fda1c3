"""Bias, GELU and dropout in one operation."""

import torch.nn.functional as F
from torch import Tensor

from .backend import check_devices, check_rows, check_vectors, runs_kernels
from .dropout import Dropout, check_dropout, dropout_rows


def bias_gelu_dropout(
    x: Tensor, bias: Tensor | None = None, *, dropout: Dropout | None = None, backend: str = "auto"
) -> Tensor:
    """dropout(gelu(x + bias)) with the exact, erf GELU (Hendrycks and Gimpel, arXiv 1606.08415).

    Args:
        x: (total_tokens, intermediate_size), the product of a linear layer.
        bias: (intermediate_size,) of that layer, where it has not been added yet.
        dropout: None for none.
        backend: "auto", "triton" or "torch".

    Returns:
        (total_tokens, intermediate_size).

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown backend.
    """
    check_rows("x", x)
    check_vectors(x.shape[1], bias=bias)
    check_devices(x=x, bias=bias)
    check_dropout(dropout, x.device)
    if runs_kernels(backend, x, bias):
        from ..kernels import activation as kernel

        return kernel.bias_gelu_dropout(x, bias, dropout)  # type: ignore[no-any-return]
    return dropout_rows(F.gelu(x if bias is None else x + bias), dropout)
