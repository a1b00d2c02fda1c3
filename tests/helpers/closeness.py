"""Closeness that a kernel must reach to an oracle in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOAT32 = 1e-5
"""Greatest error relative to the largest magnitude."""
TIMES = 2
"""Greatest error of 16-bit kernels over that of plain PyTorch in the same dtype, beyond one rounding: the rule of
FlashAttention's tests."""


def error(found: Tensor, expected: Tensor) -> float:
    return (found.double() - expected).abs().max().item() if expected.numel() else 0.0


def with_gradients(compute: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result of `compute(*inputs)` and the gradients of all inputs, for fresh leaves."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = compute(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_right(
    kernel: Callable[..., Tensor], oracle: Callable[..., Tensor], inputs: Sequence[Tensor], shape: Any, bound: float = 0
) -> list[Tensor]:
    """The kernel's result and gradients against the oracle's in float64, by the rule of the inputs' dtype.

    Args:
        bound: What intermediate results in 16 bits may add to the result's error. For results of one element, which
            plain PyTorch may hit by chance.

    Returns:
        The kernel's result and gradients.
    """
    grad = torch.randn(shape, device=inputs[0].device)
    grad = grad.to(torch.promote_types(inputs[0].dtype, inputs[-1].dtype))
    expected = with_gradients(oracle, [tensor.double() for tensor in inputs], grad.double())
    found = with_gradients(kernel, inputs, grad)
    low = [None] * len(found)
    if all(tensor.dtype != torch.float32 for tensor in inputs):
        low = with_gradients(oracle, inputs, grad)
    for index, (one, two, plain) in enumerate(zip(found, expected, low, strict=True)):
        name = "the result" if index == 0 else f"the gradient of input {index - 1}"
        assert one.isfinite().all(), f"{name} is not finite"
        if plain is None:
            most = FLOAT32 * max(two.abs().max().item() if two.numel() else 0.0, 1e-3)
        else:
            # Even the right value, rounded to the dtype, is this far off; of few elements plain PyTorch may be nearer.
            rounding = torch.finfo(one.dtype).eps / 2 * (two.abs().max().item() if two.numel() else 0.0)
            most = TIMES * error(plain, two) + rounding + (bound if index == 0 else 0)
        assert error(one, two) <= most, f"{name}: error {error(one, two):.2e}, at most {most:.2e}"
    return found
