"""A linear layer whose result for a row no other row changes."""

from torch import Tensor

from .backend import autocast, needs_grad, resolve_backend


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
