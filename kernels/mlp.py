"""The feed-forward block, linear2(y(linear1(x))), as one operation; y is bias, activation and dropout (activation.py).

    product = x weight1^T      out = y(product) weight2^T

x, out: (total_tokens, hidden_size); product: (total_tokens, intermediate_size); weight1: (intermediate_size,
hidden_size); bias1: (intermediate_size,); weight2: (hidden_size, intermediate_size). Of that width only the product is
kept for backward, which computes y again, in the pass that computes its gradient. Where the table says that it is
faster, y is made in the epilogue of linear1's product (linear.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import activation as kernel
from .common import Operation
from .configs import fuses_gelu
from .dropout import Dropout
from .linear import is_aligned, launch_linear


def _launch_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, activation: str,
    dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if fuses_gelu(x.device, x.dtype, x.shape[0]) and is_aligned(x, weight1):
        y, product = launch_linear(x, weight1, bias1, activation, dropout, save)
    else:
        product = F.linear(x, weight1)
        y = kernel.launch_forward(product, bias1, activation, dropout, out=None if save else product)
        product = product if save else product.new_empty(0, product.shape[1])
    return F.linear(y, weight2), product


def _fake_forward(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, activation: str,
    dropout: Dropout | None, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = x.shape[0] if save else 0
    return x.new_empty(x.shape[0], weight2.shape[0]), x.new_empty(rows, weight1.shape[0])


def _launch_backward(
    dout: Tensor, x: Tensor, product: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    activation: str, dropout: Dropout | None, needs_x: bool, needs_weight1: bool, needs_weight2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dproduct, dbias1, y = kernel.launch_backward(dout @ weight2, product, bias1, activation, dropout, needs_weight2)
    dx = dproduct @ weight1 if needs_x else x.new_empty(0)
    dweight1 = dproduct.T @ x if needs_weight1 else weight1.new_empty(0)
    return dx, dweight1, dbias1, dout.T @ y if needs_weight2 else weight2.new_empty(0)


def _fake_backward(
    dout: Tensor, x: Tensor, product: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    activation: str, dropout: Dropout | None, needs_x: bool, needs_weight1: bool, needs_weight2: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dweight1, dweight2 = (
        tensor.new_empty(tensor.shape if needed else 0)
        for tensor, needed in ((x, needs_x), (weight1, needs_weight1), (weight2, needs_weight2))
    )
    return dx, dweight1, torch.empty_like(bias1), dweight2


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    x, weight1, bias1, weight2, ctx.activation, *_ = args
    return x, results[1], weight1, bias1, weight2


def _grad(ctx: Any, dout: Tensor, saved: list[Tensor | None], dropout: Dropout | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:4]
    grads = mlp_backward(dout, *saved, ctx.activation, dropout, needs[0], needs[1], needs[3])
    return tuple(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


mlp_backward = Operation(
    "mlp_backward",
    "(Tensor dout, Tensor x, Tensor product, Tensor weight1, Tensor bias1, Tensor weight2, str activation, "
    "Dropout? dropout, bool needs_x, bool needs_weight1, bool needs_weight2) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    _fake_backward,
)
mlp = Operation(
    "mlp",
    "(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, str activation, Dropout? dropout, bool save) "
    "-> (Tensor, Tensor)",
    _launch_forward,
    _fake_forward,
    _save,
    _grad,
)
