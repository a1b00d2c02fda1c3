"""Benchmark of the masked-LM loss: 15 % of a batch's tokens, a table of the whole vocabulary."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import BOTH, FORWARD, K, Setting, Shape, mixed
from bench.engine.work import INDEX, Work, work_of
from erniem_fast import ops

from .inputs import CPU_SHAPES, TINY_SHAPE, OpInputs, add_unfused

MASKED = 0.15
SHAPES = (*(mixed("pairs", tokens * K, bfloat16=place) for tokens, place in ((4, 20), (16, 21))), *CPU_SHAPES)


class LossInputs(OpInputs):
    """Operands of the loss, the mean of the rows'.

    Leaves: x (num_rows, hidden_size); weight (vocab_size, hidden_size); bias (vocab_size,).

    Attributes:
        targets: (num_rows,) int64.
    """

    def __init__(self, shape: Shape, setting: Setting) -> None:
        super().__init__(shape, setting)
        rows = self.leaves[0].shape[0]
        self.targets = torch.randint(self.sizes.vocab_size, (rows,), device=setting.device)
        self.grad = torch.tensor(1 / rows, device=setting.device)

    @property
    def rows(self) -> int:
        """Tokens that are predicted."""
        return max(1, round(MASKED * self.tokens))

    def operands(self) -> tuple[Tensor, ...]:
        size, vocab, randn = self.sizes.hidden_size, self.sizes.vocab_size, self.setting.randn
        return randn(self.rows, size), randn(vocab, size) / size**0.5, randn(vocab)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        x, weight, bias = leaves
        return loss_chain(x, weight, bias, self.targets, dropout_p)

    def least_work(self) -> Work:
        sizes, setting = self.sizes, self.setting
        return loss_work(self.rows, sizes.hidden_size, sizes.vocab_size, setting.itemsize, setting.passes)


def loss_work(rows: int, size: int, vocab: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Work on (rows, size) and a table of (vocab, size); logits never reach memory. Backward is two products."""
    product = 2 * rows * size * vocab
    x, weight = rows * size * itemsize, vocab * size * itemsize
    forward = Work(product, x + weight + vocab * itemsize + rows * INDEX)
    return work_of(passes, forward, 0, Work(2 * product, 2 * x + 2 * weight + vocab * itemsize))


def loss_chain(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, dropout_p: float) -> Tensor:
    return F.cross_entropy(F.linear(x, weight, bias), targets, reduction="sum")


LINEAR_CROSS_ENTROPY = Benchmark(
    "masked-LM loss", LossInputs, SHAPES, (TINY_SHAPE,), ((BOTH, 0.0), (FORWARD, 0.0)), rounds=5
)


@LINEAR_CROSS_ENTROPY.provider(OURS, note="logits in chunks, gradients in forward")
def _(inputs: LossInputs) -> Prepared:
    return inputs.prepare(
        lambda _: (
            lambda x, weight, bias: ops.linear_cross_entropy(x, weight, bias, inputs.targets, backend=inputs.backend)
        )
    )


add_unfused(LINEAR_CROSS_ENTROPY, loss_chain, ((0,), (), (), (0,)), lambda inputs: (inputs.targets,))


LIGER = "liger_kernel is not installed" if find_spec("liger_kernel") is None else None


@LINEAR_CROSS_ENTROPY.provider(
    "liger", devices=("cuda",), note="its fused linear layer and loss", needs=lambda *_: LIGER
)
def _(inputs: LossInputs) -> Prepared:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return inputs.prepare(
        lambda _: (
            lambda x, weight, bias: liger_fused_linear_cross_entropy(x, weight, inputs.targets, bias, reduction="sum")
        )
    )
