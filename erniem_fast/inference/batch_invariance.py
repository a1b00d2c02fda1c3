"""Inference in which the rest of a batch changes no bit of a sequence's result."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops import linear
from ..ops.backend import enter_batch_invariance, has_triton, leave_batch_invariance

_PRODUCTS = (
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "inner", "einsum",
    "tensordot", "chain_matmul",
)  # fmt: skip
VARYING = {getattr(home, name) for home in (torch, Tensor) for name in _PRODUCTS if hasattr(home, name)} | {
    F.scaled_dot_product_attention, F.multi_head_attention_forward, F.bilinear, F.conv1d, F.conv2d, F.conv3d,
    torch.linalg.multi_dot,
}  # fmt: skip
"""Products by libraries, which choose the order of their sums by the size of the whole batch."""


class batch_invariant(TorchFunctionMode):  # noqa: N801  (a context manager)
    """Context in which a sequence's result is bitwise the same alone, in any batch and in any order.

        with torch.inference_mode(), batch_invariant():
            outputs = model(**batch)

    Elsewhere sums over a row are split by the number of rows, and results differ in the last bits. Here every linear
    layer, a head's and an adapter's too, is computed by the kernel of `kernels/linear.py`, and the attention takes
    tiles of one size. It holds for padding-free models and the operations of `ops`, in the thread that enters it,
    without gradients. The following raises a ValueError: other matrix products (dense attention: output_attentions,
    head_mask, masks of 3 or 4 dimensions), the torch backend, a linear layer whose rows are no multiple of 16 bytes.

    Source: He et al., "Defeating Nondeterminism in LLM Inference", thinkingmachines.ai, 2025.

    Raises:
        ValueError: triton is not installed, or torch.compile traces the `with` statement: compiled functions are called
            in the context.
    """

    def __init__(self) -> None:
        if not has_triton():
            raise ValueError("batch_invariant() needs the package triton, which is not installed")
        super().__init__()

    def __enter__(self) -> "batch_invariant":
        if torch.compiler.is_compiling():  # which reads the state while it traces, before the traced function runs
            raise ValueError("batch_invariant() must be entered outside of the compiled function")
        enter_batch_invariance()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        leave_batch_invariance()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        if func in VARYING:
            raise ValueError(
                f"batch_invariant() computes linear layers and the fused attention only, got a call of {func.__name__}"
            )
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(input, weight, bias)
