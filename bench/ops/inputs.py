"""Inputs of the operations: shapes, operands, the oracle's results; and their unfused peers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.engine.registry import Benchmark, Prepared
from bench.engine.shapes import BACKWARD, BOTH, FORWARD, TINY, Batch, K, Setting, Shape, batch_of, batched, mixed
from bench.engine.torch_compile import compiled, needs_compiler
from bench.engine.work import Work
from erniem_fast import ops
from erniem_fast.kernels.dropout import keep_rows, keep_scale

EPS = 1e-5
SITE = 3
"""Site of the dropout, as in a model's forward."""
DROPOUT_P = 0.1
FLOAT64_ELEMENTS = 2**25
"""Results of more elements are compared with float32, which is far finer than 16 bits."""
VARIANTS = (
    (FORWARD, 0.0), (BOTH, 0.0), (BOTH, DROPOUT_P), (BACKWARD, 0.0), (FORWARD, DROPOUT_P), (BACKWARD, DROPOUT_P),
)  # fmt: skip
CPU_SHAPES = (
    batch_of(*batched("xquad", "arrival", 16).batches[0], name="xquad-batch", histogram="xquad", float32=2),
    batch_of(*(128,) * 16, name="16x128", histogram="all 128", float32=2),
)
"""The first batch of the texts as they arrive, and one batch without padding."""
GPU_SHAPES = tuple(
    mixed("pairs", tokens * K, bfloat16=place) for tokens, place in ((64, 0), (4, 9), (16, 12), (256, 13))
)
ROW_SHAPES = (*GPU_SHAPES, *CPU_SHAPES)
TINY_SHAPE = batch_of(9, 3, 1, 17, 2, name="tiny", sizes=TINY, histogram="tiny")
EAGER, COMPILED = "torch", "torch.compile"

Compute = Callable[..., Tensor]


class OpInputs:
    """Operands of an operation.

    Attributes:
        batch: ids, mask and packing of the shape's only batch.
        leaves: the packed operands whose gradients are taken.
        grad: gradient of the output.
        seed: (1,) int64, seed of the dropout.
        work: least work of the setting's passes.
        facts: no further fields of the rows.
        backend: "triton" on a GPU and where the kernels are interpreted, else "torch".
    """

    facts: Mapping[str, Any] = {}

    def __init__(self, shape: Shape, setting: Setting) -> None:
        self.shape, self.setting, self.sizes = shape, setting, shape.sizes
        (self.lengths,) = shape.batches
        self.batch = Batch.random(self.lengths, self.sizes.vocab_size, setting.device)
        self.tokens = self.batch.packed.total_tokens
        self.leaves = self.operands()
        self.grad = setting.randn(self.tokens, *self.out_shape())
        self.seed = torch.randint(0, 2**62, (1,), device=setting.device)
        self.work = self.least_work()
        self.backend = "triton" if setting.device == "cuda" or needs_triton(shape, setting) is None else "torch"
        self._expected: dict[float, tuple[list[Tensor], list[Tensor] | None]] = {}

    def operands(self) -> tuple[Tensor, ...]:
        """Make the leaves."""
        raise NotImplementedError

    def out_shape(self) -> tuple[int, ...]:
        """Shape of a row of the output."""
        return (self.sizes.hidden_size,)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        """Plain PyTorch in the dtype of `leaves`, which are `sample(self.leaves)`."""
        raise NotImplementedError

    def least_work(self) -> Work:
        raise NotImplementedError

    def sample(self, rows: Tensor) -> Tensor:
        """Rows of an operand, of its gradient or of the output that are compared."""
        return rows

    def drop(self, rows: Tensor, dropout_p: float) -> Tensor:
        """Dropout with the kernels' mask on packed rows."""
        if not dropout_p:
            return rows
        indices = torch.arange(rows.shape[0], device=rows.device)
        return rows * keep_rows(self.seed, SITE, indices, rows.shape[1], dropout_p) * keep_scale(dropout_p)

    def dropout(self, p: float) -> ops.Dropout | None:
        """Dropout as our operations take it."""
        return ops.Dropout(p, self.seed, SITE) if p else None

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """The formula's results in float64 or float32, and in a 16-bit dtype; made once."""
        if dropout_p not in self._expected:
            finer = torch.float64 if self.sample(self.grad).numel() <= FLOAT64_ELEMENTS else torch.float32
            right = self._by_formula(finer, dropout_p)
            plain = None if self.setting.dtype == torch.float32 else self._by_formula(self.setting.dtype, dropout_p)
            self._expected[dropout_p] = right, plain
        return self._expected[dropout_p]

    def _by_formula(self, dtype: torch.dtype, dropout_p: float) -> list[Tensor]:
        leaves = [self.sample(leaf).to(dtype) for leaf in self.leaves]
        grad = self.sample(self.grad).to(dtype)
        return self._results(lambda *operands: self.formula(*operands, dropout_p=dropout_p), leaves, grad)

    def _results(self, compute: Compute, leaves: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        """The output and, beyond a forward pass, the gradients of fresh leaves."""
        if self.setting.passes == FORWARD:
            with torch.no_grad():
                return [compute(*leaves)]
        fresh = [leaf.detach().requires_grad_() for leaf in leaves]
        out = compute(*fresh)
        return [out.detach(), *torch.autograd.grad(out, fresh, grad)]

    def prepare(
        self,
        make: Callable[[float], Compute],
        leaves: Sequence[Tensor] | None = None,
        grad: Tensor | None = None,
        to_shared: Callable[[list[Tensor]], list[Tensor]] | None = None,
        same_mask: bool = False,
    ) -> Prepared:
        """A provider of this operation.

        Args:
            make: from a dropout probability to the function of `leaves` that is timed.
            leaves: its operands; None: the packed ones.
            grad: gradient of its output; None: that of the packed output.
            to_shared: from its output and gradients to packed ones; None: they are packed.
            same_mask: True if its dropout has the oracle's mask. Else it is compared without dropout.
        """
        fresh = [leaf.detach().requires_grad_() for leaf in leaves or self.leaves]
        arriving, compute = self.grad if grad is None else grad, make(self.setting.dropout_p)
        checked = make(self.setting.dropout_p if same_mask else 0.0)
        graph: list[Tensor] = []  # made by the first backward, which every later one goes through again

        def forward() -> object:
            with torch.no_grad():
                return compute(*fresh)

        def both() -> object:
            return torch.autograd.grad(compute(*fresh), fresh, arriving)

        def backward() -> object:
            if not graph:
                graph.append(compute(*fresh))
            return torch.autograd.grad(graph[0], fresh, arriving, retain_graph=True)

        def results() -> list[Tensor]:
            found = self._results(checked, fresh, arriving)
            return [self.sample(one) for one in (found if to_shared is None else to_shared(found))]

        runs: dict[str, Callable[[], object]] = {FORWARD: forward, BACKWARD: backward, BOTH: both}
        return Prepared(runs[self.setting.passes], results, same_mask)


def needs_triton(shape: Shape, setting: Setting) -> str | None:
    """Reason why the kernels cannot run, or None."""
    try:
        ops.resolve_backend("triton", torch.device(setting.device), setting.dtype)
    except ValueError as error:
        return str(error)
    return None


def needs_forward(shape: Shape, setting: Setting) -> str | None:
    return None if setting.passes == FORWARD else "for the forward pass only"


def needs_triton_and_forward(shape: Shape, setting: Setting) -> str | None:
    return needs_triton(shape, setting) or needs_forward(shape, setting)


def add_unfused(
    benchmark: Benchmark,
    chain: Callable[..., Tensor],
    varying: tuple[tuple[int, ...], ...],
    extra: Callable[[Any], tuple[Any, ...]] = lambda inputs: (),
) -> None:
    """Register `chain(*leaves, *extra(inputs), dropout_p)`, eager and compiled; `varying` as in `compiled`."""

    @benchmark.provider(EAGER, note="packed, unfused")
    def _(inputs: OpInputs) -> Prepared:
        return inputs.prepare(lambda p: lambda *leaves: chain(*leaves, *extra(inputs), p))

    @benchmark.provider(COMPILED, note="packed, the chain of `torch` compiled", needs=needs_compiler)
    def _(inputs: OpInputs) -> Prepared:
        function = compiled(chain, inputs.setting.device, varying)
        return inputs.prepare(lambda p: lambda *leaves: function(*leaves, *extra(inputs), p))
