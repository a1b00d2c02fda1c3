"""Benchmark of dropout(gelu(x + bias))."""

import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD
from bench.engine.work import Work, work_of
from erniem_fast import ops

from .inputs import ROW_SHAPES, TINY_SHAPE, VARIANTS, Compute, OpInputs, add_unfused


class ActivationInputs(OpInputs):
    """Operands of bias and GELU. Leaves: x (total_tokens, intermediate_size); bias (intermediate_size,)."""

    def operands(self) -> tuple[Tensor, ...]:
        size = self.sizes.intermediate_size
        return self.setting.randn(self.tokens, size), self.setting.randn(size)

    def out_shape(self) -> tuple[int, ...]:
        return (self.sizes.intermediate_size,)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        return self.drop(F.gelu(leaves[0] + leaves[1]), dropout_p)

    def least_work(self) -> Work:
        setting = self.setting
        return activation_work(self.tokens, self.sizes.intermediate_size, setting.itemsize, setting.passes)


def activation_work(rows: int, size: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Work on (rows, size). Keeps nothing but its operands."""
    wide, vector = rows * size * itemsize, size * itemsize
    # x, y, bias; then x, y's gradient, bias, and the gradients of x and bias.
    return work_of(passes, Work(0, 2 * wide + vector), 0, Work(0, 3 * wide + 2 * vector))


ACTIVATION = Benchmark("bias+gelu", ActivationInputs, ROW_SHAPES, (TINY_SHAPE,), VARIANTS)


@ACTIVATION.provider(OURS)
def _(inputs: ActivationInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, bias: ops.bias_activation_dropout(x, bias, dropout=inputs.dropout(p), backend=inputs.backend)

    return inputs.prepare(make, same_mask=True)


def gelu_chain(x: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    return F.dropout(F.gelu(x + bias), dropout_p)


add_unfused(ACTIVATION, gelu_chain, ((0,), ()))
