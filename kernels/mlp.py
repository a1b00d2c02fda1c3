"""The feed-forward block: linear2(y(linear1(x))), y being bias, GELU and dropout (activation.py), as one operation.

x: (total_tokens, hidden_size); weight1: (intermediate_size, hidden_size); weight2: (hidden_size, intermediate_size).
For backward it keeps the product of linear1 only; backward computes y again, in the pass that computes its gradient.
Where the table says that it wins, y is made in the epilogue of linear1's product (linear.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activation
from .common import Operation
from .configs import fuses_gelu
from .linear import is_aligned, launch_linear


def _launch_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float, seed: Tensor | None, site: int,
    save: bool, batch_invariant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """batch_invariant: no product by cuBLAS."""
    if batch_invariant or (fuses_gelu(x.device, x.dtype, x.shape[0]) and is_aligned(x, weight1)):
        y, product = launch_linear(x, weight1, bias1, True, dropout_p, seed, site, save)
    else:
        product = F.linear(x, weight1)
        y = activation.launch_forward(product, bias1, dropout_p, seed, site, out=None if save else product)
        product = product if save else product.new_empty(0, product.shape[1])
    return launch_linear(y, weight2, None)[0] if batch_invariant else F.linear(y, weight2), product


def _fake_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float, seed: Tensor | None, site: int,
    save: bool, batch_invariant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = x.shape[0] if save else 0
    return x.new_empty(x.shape[0], weight2.shape[0]), x.new_empty(rows, weight1.shape[0])


def _launch_backward(
    grad: Tensor, x: Tensor, product: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float,
    seed: Tensor | None, site: int, needs_x: bool, needs_weight1: bool, needs_weight2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_product, grad_bias1, y = activation.launch_backward(
        grad @ weight2, product, bias1, dropout_p, seed, site, needs_weight2
    )
    grad_x = grad_product @ weight1 if needs_x else x.new_empty(0)
    grad_weight1 = grad_product.T @ x if needs_weight1 else weight1.new_empty(0)
    return grad_x, grad_weight1, grad_bias1, grad.T @ y if needs_weight2 else weight2.new_empty(0)


def _fake_backward(
    grad: Tensor, x: Tensor, product: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float,
    seed: Tensor | None, site: int, needs_x: bool, needs_weight1: bool, needs_weight2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x, grad_weight1, grad_weight2 = (
        tensor.new_empty(tensor.shape if needed else 0)
        for tensor, needed in ((x, needs_x), (weight1, needs_weight1), (weight2, needs_weight2))
    )
    return grad_x, grad_weight1, torch.empty_like(bias1), grad_weight2


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight1, bias1, weight2, ctx.dropout_p, seed, ctx.site, *_ = inputs
    ctx.save_for_backward(x, output[1], weight1, bias1, weight2, seed)
    ctx.mark_non_differentiable(output[1])


def _grad(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *saved, seed = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    grads = mlp_backward(grad, *saved, ctx.dropout_p, seed, ctx.site, needs[0], needs[1], needs[3])
    return *(tensor if needed else None for tensor, needed in zip(grads, needs, strict=True)), *[None] * 5


_DROPOUT = "float dropout_p, Tensor? seed, int site"
mlp_backward = Operation(
    "mlp_backward",
    f"(Tensor grad, Tensor x, Tensor product, Tensor weight1, Tensor bias1, Tensor weight2, {_DROPOUT}, "
    "bool needs_x, bool needs_weight1, bool needs_weight2) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
mlp = Operation(
    "mlp",
    f"(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, {_DROPOUT}, bool save, bool batch_invariant) "
    "-> (Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
