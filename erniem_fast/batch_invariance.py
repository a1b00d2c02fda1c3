"""Inference in which what else is in a batch changes no bit of a sequence's result."""

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

VARYING = {
    torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum, F.scaled_dot_product_attention,
    Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm,
}  # fmt: skip
"""Products by libraries that choose how to add up by the size of the whole batch."""


class batch_invariant(TorchFunctionMode):  # noqa: N801, it is used like a function
    """Context in which a sequence's result is bitwise the same alone, in any batch and in any order.

        with torch.inference_mode(), batch_invariant():
            outputs = model(**batch)

    Otherwise sums over a row are split by how many rows there are, and results differ in the last bits. Every linear
    layer, of heads and adapters, too, goes through the Triton kernel of `kernels/linear.py`, which adds up in one order
    whatever the batch, and the attention takes tiles of one size. It holds for the padding-free model and the
    operations of `ops`, in the thread that enters it, without gradients; what can't be had raises a ValueError: other
    matrix products (dense attention: output_attentions, head_mask, masks of 3 or 4 dimensions), the torch backend,
    in_features whose rows are no multiple of 16 bytes.

    Raises:
        ValueError: triton is not installed.
    """

    def __init__(self) -> None:
        if find_spec("triton") is None:
            raise ValueError("batch_invariant() needs the package triton, which is not installed")
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func in VARYING:
            raise ValueError(
                f"batch_invariant() computes linear layers and the fused attention only, got a call of {func.__name__}"
            )
        return func(*args, **(kwargs or {}))


def is_batch_invariant() -> bool:
    """Whether the calling thread is inside `batch_invariant()`."""
    return any(isinstance(mode, batch_invariant) for mode in _get_current_function_mode_stack())


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from . import triton_ops

    return triton_ops.linear(input, weight, bias)
