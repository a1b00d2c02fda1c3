"""The mode in which what else is in a batch changes no bit of a sequence's result; `ops.batch_invariant` enters it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

VARYING = {
    torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum, F.scaled_dot_product_attention,
    Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm,
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
