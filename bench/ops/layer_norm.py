"""Benchmark of layer_norm(residual + dropout(x + linear_bias))."""

from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD
from bench.engine.work import STATISTIC, Work, work_of
from erniem_fast import ops

from .inputs import EPS, ROW_SHAPES, TINY_SHAPE, VARIANTS, Compute, OpInputs, add_unfused


class LayerNormInputs(OpInputs):
    """Operands of the layer-norm.

    Leaves: x, residual (total_tokens, hidden_size); weight, bias, linear_bias (hidden_size,).
    """

    def operands(self) -> tuple[Tensor, ...]:
        size, randn = self.sizes.hidden_size, self.setting.randn
        return randn(self.tokens, size), randn(self.tokens, size), randn(size), randn(size), randn(size)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        x, residual, weight, bias, linear_bias = leaves
        return F.layer_norm(residual + self.drop(x + linear_bias, dropout_p), weight.shape, weight, bias, EPS)

    def least_work(self) -> Work:
        setting = self.setting
        size, dropout = self.sizes.hidden_size, setting.dropout_p > 0
        return layer_norm_work(self.tokens, size, setting.itemsize, setting.passes, dropout)


def layer_norm_work(rows: int, size: int, itemsize: int, passes: str = FORWARD, dropout: bool = False) -> Work:
    """Work on (rows, size). Keeps the sum, mean and rstd.

    Without dropout the gradients of x and residual are one tensor.
    """
    wide, vector, statistics = rows * size * itemsize, size * itemsize, 2 * rows * STATISTIC
    forward = Work(0, 3 * wide + 3 * vector)  # x, residual, y; weight, bias, linear_bias
    # y's gradient, the sum, weight; the gradients of x (and of residual) and of the three vectors.
    backward = Work(0, (4 if dropout else 3) * wide + 4 * vector + statistics)
    return work_of(passes, forward, wide + statistics, backward)


LAYER_NORM = Benchmark("add+layer-norm", LayerNormInputs, ROW_SHAPES, (TINY_SHAPE,), VARIANTS)


@LAYER_NORM.provider(OURS)
def _(inputs: LayerNormInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, residual, weight, bias, linear_bias: ops.dropout_add_layer_norm(
            x, residual, weight, bias, EPS, linear_bias=linear_bias, dropout=inputs.dropout(p), backend=inputs.backend
        )

    return inputs.prepare(make, same_mask=True)


def layer_norm_chain(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor, dropout_p: float
) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + linear_bias, dropout_p), weight.shape, weight, bias, EPS)


add_unfused(LAYER_NORM, layer_norm_chain, ((0,), (0,), (), (), ()))


LIGER = "liger_kernel is not installed" if find_spec("liger_kernel") is None else None


@LAYER_NORM.provider("liger", devices=("cuda",), note="its layer-norm in the unfused chain", needs=lambda *_: LIGER)
def _(inputs: LayerNormInputs) -> Prepared:
    from liger_kernel.transformers.functional import liger_layer_norm

    def make(p: float) -> Compute:
        return lambda x, residual, weight, bias, linear_bias: liger_layer_norm(
            residual + F.dropout(x + linear_bias, p), weight, bias, EPS
        )

    return inputs.prepare(make)
