"""Linear layers: with a residual, and one whose result for a row no other row changes."""

import torch.nn.functional as F
from torch import Tensor

from . import rows_cpu
from .backend import autocast, check_residual, check_rows, needs_grad, resolve_backend


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias by a kernel that adds up in one order whatever the number of rows. For inference.

    Source: He et al., "Defeating Nondeterminism in LLM Inference", thinkingmachines.ai, 2025.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features) of x's dtype; a row must be a multiple of 16 bytes.
        bias: (out_features,) of x's dtype, or None.

    Returns:
        (..., out_features).

    Raises:
        ValueError: operands that the kernel does not take, or a gradient is asked for.
    """
    x, weight, bias = autocast(x, weight, bias)  # type: ignore[assignment]
    resolve_backend("triton", x.device, x.dtype)
    from ..kernels import linear as kernel

    if not kernel.is_aligned(x, weight):
        step = kernel.ALIGNMENT // x.dtype.itemsize
        raise ValueError(
            f"batch_invariant() needs linear layers of the operand's dtype whose in_features are a multiple of {step} "
            f"in {x.dtype}, got {weight.dtype} {tuple(weight.shape)}"
        )
    if bias is not None and bias.dtype != x.dtype:
        raise ValueError(f"batch_invariant() needs a bias of {x.dtype}, the operands' dtype, got {bias.dtype}")
    if needs_grad(x, weight, bias):
        raise ValueError("batch_invariant() is for inference: use torch.inference_mode() or torch.no_grad()")
    y: Tensor = kernel.linear(x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def add_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """residual + x weight^T + bias, by torch; in inference on a CPU by pieces of rows (`rows_cpu.py`).

    Args:
        x: (total_tokens, in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        residual: (total_tokens, out_features), or None.

    Returns:
        (total_tokens, out_features).

    Raises:
        ValueError: shapes that do not fit.
    """
    check_rows("x", x)
    check_residual(residual, x.shape[0], weight.shape[0])
    if not rows_cpu.takes(x, weight, bias, residual):
        out = F.linear(x, weight, bias)
        return out if residual is None else residual + out
    if residual is not None:
        return rows_cpu.add_linear(x, weight, bias, residual)
    return rows_cpu.linear(x, [weight], [bias])[:, 0]
