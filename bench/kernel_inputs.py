"""What the providers of a kernel share: operands, the gradient that arrives, and what is right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from erniem_fast.kernels.dropout import keep_rows, keep_scale, keep_scores

from . import work
from .registry import Prepared
from .shapes import Batch, Setting, Shape

EPS = 1e-5
MAX_POSITIONS = 514
SITE = 3
"""Which dropout of the model this would be."""
CHECKED_SEQUENCES = 24
"""Attention is compared on these: the first, the last, and some between."""
FLOAT64_ELEMENTS = 2**25
"""Row operations of more elements are compared with float32, which is far finer than 16 bits."""

Compute = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class KernelInputs:
    """Operands of a kernel.

    Attributes:
        shape, setting: that they are made for.
        batch: ids, mask and packing.
        leaves: the packed operands whose gradients are taken.
        grad: the gradient of the output.
        seed: (1,) int64 of the dropout.
        work: what the operation must do in this pass.
        known: what `expected` has made, by dropout probability.
    """

    shape: Shape
    setting: Setting
    batch: Batch
    leaves: tuple[Tensor, ...]
    grad: Tensor
    seed: Tensor
    work: work.Work
    known: dict[float, tuple[list[Tensor], list[Tensor] | None]] = field(default_factory=dict)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        """Plain PyTorch, in the dtype of `leaves`, which stand for `sample(self.leaves)`."""
        raise NotImplementedError

    def sample(self, rows: Tensor) -> Tensor:
        """The rows of an operand, or of its gradient, or of the output, that are compared."""
        return rows

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """What is right, and what plain PyTorch makes of it in a 16-bit dtype; made once."""
        if dropout_p not in self.known:
            self.known[dropout_p] = self._make_expected(dropout_p)
        return self.known[dropout_p]

    def _make_expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        leaves, grad = [self.sample(leaf) for leaf in self.leaves], self.sample(self.grad)
        finer = torch.float64 if grad.numel() <= FLOAT64_ELEMENTS else torch.float32

        def in_dtype(dtype: torch.dtype) -> list[Tensor]:
            def compute(*operands: Tensor) -> Tensor:
                return self.formula(*operands, dropout_p=dropout_p)

            return self.results(compute, [leaf.to(dtype) for leaf in leaves], grad.to(dtype))

        return in_dtype(finer), None if self.setting.dtype == torch.float32 else in_dtype(self.setting.dtype)

    def results(self, compute: Compute, leaves: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        """The output and, beyond a forward pass, the gradients of fresh leaves."""
        if self.setting.passes == work.FORWARD:
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
        """A provider of this kernel.

        Args:
            make: from a dropout probability to the function of `leaves` that is timed.
            leaves: its operands; None: the packed ones.
            grad: of its output; None: that of the packed output.
            to_shared: from its output and gradients to packed ones; None: they are.
            same_mask: its dropout has the oracle's mask. Else it is compared without dropout.
        """
        fresh = [leaf.detach().requires_grad_() for leaf in leaves or self.leaves]
        arrives, compute = self.grad if grad is None else grad, make(self.setting.dropout_p)
        checked = make(self.setting.dropout_p if same_mask else 0.0)

        def forward() -> Tensor:
            with torch.no_grad():
                return compute(*fresh)

        def both() -> object:
            return torch.autograd.grad(compute(*fresh), fresh, arrives)

        kept: list[Tensor] = []  # the graph that backward goes through, made by its first call

        def backward() -> object:
            if not kept:
                kept.append(compute(*fresh))
            return torch.autograd.grad(kept[0], fresh, arrives, retain_graph=True)

        def results() -> list[Tensor]:
            found = self.results(checked, fresh, arrives)
            return [self.sample(one) for one in (found if to_shared is None else to_shared(found))]

        run: Callable[[], object] = {work.FORWARD: forward, work.BACKWARD: backward}.get(self.setting.passes, both)
        return Prepared(run, None, results=results, same_mask=same_mask)


def _batch(shape: Shape, setting: Setting) -> Batch:
    (lengths,) = shape.batches
    return Batch.random(lengths, shape.sizes.vocab_size, setting.device)


def _seed(setting: Setting) -> Tensor:
    return torch.randint(0, 2**62, (1,), device=setting.device)


def _itemsize(setting: Setting) -> int:
    return torch.finfo(setting.dtype).bits // 8


@dataclass(frozen=True, eq=False)
class AttentionInputs(KernelInputs):
    """leaves: qkv (total_tokens, 3, num_heads, head_dim)."""

    made: list[Tensor] = field(default_factory=list)

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "AttentionInputs":
        sizes, batch = shape.sizes, _batch(shape, setting)
        total, head_dim = batch.packed.total_tokens, sizes.hidden_size // sizes.num_heads
        qkv = setting.randn(total, 3, sizes.num_heads, head_dim)
        grad = setting.randn(total, sizes.num_heads, head_dim)
        amount = work.attention(shape.batches[0], sizes.num_heads, head_dim, _itemsize(setting), setting.passes)
        return cls(shape, setting, batch, (qkv,), grad, _seed(setting), amount)

    def padded(self) -> tuple[list[Tensor], Tensor]:
        """Query, key, value and the output's gradient, (batch, num_heads, seq_len, head_dim); made once."""
        if not self.made:
            rows = [*self.leaves[0].unbind(1), self.grad]
            self.made.extend(self.batch.packed.to_grid(one).transpose(1, 2).contiguous() for one in rows)
        return self.made[:3], self.made[3]

    def checked_spans(self) -> list[tuple[int, int]]:
        """First and last row of each sequence that is compared."""
        offsets = [0, *torch.tensor(self.shape.batches[0]).cumsum(0).tolist()]
        spans = list(pairwise(offsets))
        third = CHECKED_SEQUENCES // 3
        if len(spans) <= CHECKED_SEQUENCES:
            return spans
        step = (len(spans) - 2 * third) // third
        return spans[:third] + spans[third:-third:step][:third] + spans[-third:]

    def sample(self, rows: Tensor) -> Tensor:
        return torch.cat([rows[begin:end] for begin, end in self.checked_spans()])

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        spans, outs = self.checked_spans(), []
        for (begin, end), qkv in zip(spans, leaves[0].split([end - begin for begin, end in spans]), strict=True):
            query, key, value = qkv.permute(1, 2, 0, 3)
            probabilities = (query @ key.transpose(1, 2) / math.sqrt(qkv.shape[-1])).softmax(-1)
            if dropout_p:
                start = torch.tensor([begin], device=qkv.device)
                keep = keep_scores(self.seed, SITE, start, qkv.shape[2], end - begin, dropout_p)[0]
                probabilities = probabilities * keep * keep_scale(dropout_p)
            outs.append((probabilities @ value).transpose(0, 1))
        return torch.cat(outs)


class RowInputs(KernelInputs):
    """Kernels whose rows are computed each by itself."""

    def drop(self, rows: Tensor, dropout_p: float) -> Tensor:
        if not dropout_p:
            return rows
        places = torch.arange(rows.shape[0], device=rows.device)
        keep = keep_rows(self.seed, SITE, places, rows.shape[1], dropout_p)
        return rows * keep * keep_scale(dropout_p)


class AddNormInputs(RowInputs):
    """leaves: x, residual (total_tokens, hidden_size); weight, bias, linear_bias (hidden_size,)."""

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "AddNormInputs":
        size, batch = shape.sizes.hidden_size, _batch(shape, setting)
        total = batch.packed.total_tokens
        leaves = (*(setting.randn(total, size) for _ in range(2)), *(setting.randn(size) for _ in range(3)))
        dropout = setting.dropout_p > 0
        amount = work.add_layer_norm(total, size, _itemsize(setting), setting.passes, dropout)
        return cls(shape, setting, batch, leaves, setting.randn(total, size), _seed(setting), amount)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        x, residual, weight, bias, linear_bias = leaves
        return F.layer_norm(residual + self.drop(x + linear_bias, dropout_p), weight.shape, weight, bias, EPS)


class GeluInputs(RowInputs):
    """leaves: x (total_tokens, intermediate_size); bias (intermediate_size,)."""

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "GeluInputs":
        size, batch = shape.sizes.intermediate_size, _batch(shape, setting)
        total = batch.packed.total_tokens
        leaves = (setting.randn(total, size), setting.randn(size))
        amount = work.bias_gelu(total, size, _itemsize(setting), setting.passes)
        return cls(shape, setting, batch, leaves, setting.randn(total, size), _seed(setting), amount)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        return self.drop(F.gelu(leaves[0] + leaves[1]), dropout_p)


class LinearGeluInputs(RowInputs):
    """leaves: x (total_tokens, hidden_size), weight (intermediate_size, hidden_size), bias (intermediate_size,)."""

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "LinearGeluInputs":
        size, out, batch = shape.sizes.hidden_size, shape.sizes.intermediate_size, _batch(shape, setting)
        total = batch.packed.total_tokens
        leaves = (setting.randn(total, size), setting.randn(out, size) / size**0.5, setting.randn(out))
        amount = work.linear_gelu(total, size, out, _itemsize(setting), setting.passes)
        return cls(shape, setting, batch, leaves, setting.randn(total, out), _seed(setting), amount)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        x, weight, bias = leaves
        return self.drop(F.gelu(F.linear(x, weight) + bias), dropout_p)


class EmbeddingInputs(RowInputs):
    """leaves: words (vocab_size, hidden_size), positions (514, hidden_size), weight, bias (hidden_size,)."""

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "EmbeddingInputs":
        sizes, batch = shape.sizes, _batch(shape, setting)
        size, total = sizes.hidden_size, batch.packed.total_tokens
        tables = setting.randn(sizes.vocab_size, size), setting.randn(MAX_POSITIONS, size)
        leaves = (*tables, setting.randn(size), setting.randn(size))
        assert batch.packed.input_ids is not None
        amount = work.embedding_layer_norm(
            total, len(batch.packed.input_ids.unique()), max(shape.batches[0]), sizes.vocab_size, MAX_POSITIONS, size,
            _itemsize(setting), setting.passes,
        )  # fmt: skip
        return cls(shape, setting, batch, leaves, setting.randn(total, size), _seed(setting), amount)

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        words, positions, weight, bias = leaves
        packed = self.batch.packed
        assert packed.input_ids is not None
        rows = F.embedding(packed.input_ids, words) + F.embedding(packed.position_ids, positions)
        return self.drop(F.layer_norm(rows, weight.shape, weight, bias, EPS), dropout_p)
