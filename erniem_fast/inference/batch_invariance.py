"""The mode in which what else is in a batch changes no bit of a sequence's result; `ops.batch_invariant` enters it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

_PRODUCTS = (
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "inner", "einsum",
    "tensordot", "chain_matmul",
)  # fmt: skip
VARYING = {getattr(home, name) for home in (torch, Tensor) for name in _PRODUCTS if hasattr(home, name)} | {
    F.scaled_dot_product_attention, F.multi_head_attention_forward, F.bilinear, F.conv1d, F.conv2d, F.conv3d,
    torch.linalg.multi_dot,
}  # fmt: skip
"""Products by libraries that choose by the size of the whole batch how to add up."""


class BatchInvariant(TorchFunctionMode):
    """Gives every linear layer, a head's and an adapter's, too, to `linear(x, weight, bias)`."""

    def __init__(self, linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.linear = linear

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        if func in VARYING:
            raise ValueError(
                f"batch_invariant() computes linear layers and the fused attention only, got a call of {func.__name__}"
            )
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.linear(input, weight, bias)


def is_batch_invariant() -> bool:
    """Whether the calling thread is in the mode."""
    return any(isinstance(mode, BatchInvariant) for mode in _get_current_function_mode_stack())
