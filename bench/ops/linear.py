"""Benchmark of the batch-invariant linear layer, at the sizes of a layer's q, k and v in one."""

import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD
from bench.engine.work import Work, work_of
from erniem_fast import ops

from .inputs import EAGER, GPU_SHAPES, TINY_SHAPE, OpInputs, needs_triton_and_forward


class LinearInputs(OpInputs):
    """Operands of a linear layer. Leaves: x (total_tokens, hidden), weight (3 * hidden, hidden), bias (3 * hidden,)."""

    def operands(self) -> tuple[Tensor, ...]:
        size, (out,), randn = self.sizes.hidden_size, self.out_shape(), self.setting.randn
        return randn(self.tokens, size), randn(out, size) / size**0.5, randn(out)

    def out_shape(self) -> tuple[int, ...]:
        return (3 * self.sizes.hidden_size,)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        return F.linear(*leaves)

    def least_work(self) -> Work:
        return linear_work(self.tokens, self.sizes.hidden_size, self.out_shape()[0], self.setting.itemsize)


def linear_work(
    rows: int, size_in: int, size_out: int, itemsize: int, passes: str = FORWARD, has_bias: bool = True
) -> Work:
    """Work of a linear layer; backward is the product with the weight and the one that is its gradient."""
    product = 2 * rows * size_in * size_out
    x, y, weight, bias = rows * size_in, rows * size_out, size_in * size_out, size_out * has_bias
    # x, weight, bias, y; then x, weight, y's gradient, and the gradients of x, weight and bias.
    backward = Work(2 * product, (2 * x + 2 * weight + y + bias) * itemsize)
    return work_of(passes, Work(product, (x + y + weight + bias) * itemsize), 0, backward)


LINEAR = Benchmark("linear", LinearInputs, GPU_SHAPES, (TINY_SHAPE,))


@LINEAR.provider(OURS, note="batch-invariant", needs=needs_triton_and_forward)
def _(inputs: LinearInputs) -> Prepared:
    return inputs.prepare(lambda _: ops.linear)


@LINEAR.provider(EAGER, note="F.linear")
def _(inputs: LinearInputs) -> Prepared:
    return inputs.prepare(lambda _: F.linear)
