"""Benchmark of dropout(gelu(x weight1^T + bias1)) weight2^T, whose bias the next layer-norm adds."""

import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD
from bench.engine.work import Work, work_of
from erniem_fast import ops

from .inputs import (
    ROW_SHAPES,
    TINY_SHAPE,
    VARIANTS,
    Compute,
    OpInputs,
    add_unfused,
    needs_triton,
    needs_triton_and_forward,
)
from .linear import linear_work


class MlpInputs(OpInputs):
    """Operands of the MLP.

    Leaves: x (total_tokens, hidden), weight1 (inner, hidden), bias1 (inner,), weight2 (hidden, inner).
    """

    def operands(self) -> tuple[Tensor, ...]:
        size, inner, randn = self.sizes.hidden_size, self.sizes.intermediate_size, self.setting.randn
        weight1, weight2 = randn(inner, size) / size**0.5, randn(size, inner) / inner**0.5
        return randn(self.tokens, size), weight1, randn(inner), weight2

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        x, weight1, bias1, weight2 = leaves
        return F.linear(self.drop(F.gelu(F.linear(x, weight1) + bias1), dropout_p), weight2)

    def least_work(self) -> Work:
        sizes, setting = self.sizes, self.setting
        return mlp_work(self.tokens, sizes.hidden_size, sizes.intermediate_size, setting.itemsize, setting.passes)


def linear_gelu_work(rows: int, size_in: int, size_out: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Work of dropout(gelu(x weight^T + bias)). Keeps the product."""
    product = 2 * rows * size_in * size_out
    x, y, weight, bias = rows * size_in, rows * size_out, size_in * size_out, size_out
    # x, weight, bias, y; then x, weight, bias, the product, y's gradient, and the gradients of x, weight and bias.
    backward = Work(2 * product, 2 * (x + weight + bias + y) * itemsize)
    return work_of(passes, Work(product, (x + y + weight + bias) * itemsize), y * itemsize, backward)


def mlp_work(rows: int, size: int, inner: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Work of both products: the second one cannot begin before the first one has ended."""
    second = linear_work(rows, inner, size, itemsize, passes, has_bias=False)
    return linear_gelu_work(rows, size, inner, itemsize, passes) + second


MLP = Benchmark("mlp", MlpInputs, ROW_SHAPES, (TINY_SHAPE,), VARIANTS)


@MLP.provider(OURS, note="GELU in the first product's epilogue or by itself, as the tuned table says")
def _(inputs: MlpInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, weight1, bias1, weight2: ops.mlp(
            x, weight1, bias1, weight2, dropout=inputs.dropout(p), backend=inputs.backend
        )

    return inputs.prepare(make, same_mask=True)


@MLP.provider("two passes", note="PyTorch's products, our GELU between them", needs=needs_triton)
def _(inputs: MlpInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, weight1, bias1, weight2: F.linear(
            ops.bias_activation_dropout(F.linear(x, weight1), bias1, dropout=inputs.dropout(p), backend="triton"),
            weight2,
        )

    return inputs.prepare(make, same_mask=True)


@MLP.provider("epilogue", note="GELU in the first product's epilogue", needs=needs_triton_and_forward)
def _(inputs: MlpInputs) -> Prepared:
    from erniem_fast.kernels.linear import launch_linear

    def make(p: float) -> Compute:
        return lambda x, weight1, bias1, weight2: F.linear(
            launch_linear(x, weight1, bias1, "gelu", inputs.dropout(p))[0], weight2
        )

    return inputs.prepare(make, same_mask=True)


def mlp_chain(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float) -> Tensor:
    return F.linear(F.dropout(F.gelu(F.linear(x, weight1, bias1)), dropout_p), weight2)


add_unfused(MLP, mlp_chain, ((0,), (), (), ()))
