"""Varlen attention by torch: batched products over groups of sequences.

A CPU groups sequences of equal length, so that nothing is padded; what is neither trained nor masked goes through
`attention_cpu.py`. Elsewhere reading the lengths would stall the device: groups are padded to the longest sequence.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.dropout import Dropout, keep_scale, keep_scores
from . import attention_cpu, dropout_cpu

SCORES_PER_CHUNK = 512 * 1024
"""Most attention scores computed at once on a CPU: they should stay near the cache."""
PADDED_SCORES_PER_CHUNK = 256 * 1024 * 1024
"""Most attention scores computed at once elsewhere: they should fit into memory several times over."""


class Group(NamedTuple):
    """Sequences that share one batched product.

    Attributes:
        rows: (group, length) int64 row indices, total_tokens at padding; or the slice of a lone sequence.
        sequences: (group,) int64 indices of the sequences.
        valid: (group, length) bool, False at padding; None without padding.
    """

    rows: Tensor | slice
    sequences: Tensor
    valid: Tensor | None


def group_sequences(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total_tokens: int) -> Iterable[Group]:
    """Split the sequences of a batch into groups that one batched product computes."""
    if cu_seqlens.device.type == "cpu":
        return groups_of_equal_length(cu_seqlens, num_heads)
    return padded_groups(cu_seqlens, max_seqlen, num_heads, total_tokens)


def groups_of_equal_length(cu_seqlens: Tensor, num_heads: int) -> Iterator[Group]:
    by_length: dict[int, list[int]] = {}
    offsets = cu_seqlens.tolist()
    for sequence, (start, end) in enumerate(pairwise(offsets)):
        by_length.setdefault(end - start, []).append(sequence)
    by_length.pop(0, None)
    for length, sequences in by_length.items():
        chunk = max(1, SCORES_PER_CHUNK // (num_heads * length * length))
        for begin in range(0, len(sequences), chunk):
            index = torch.tensor(sequences[begin : begin + chunk])
            if len(index) == 1:
                start = offsets[sequences[begin]]
                yield Group(slice(start, start + length), index, None)
            else:
                yield Group(cu_seqlens[index, None].long() + torch.arange(length), index, None)


def padded_groups(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total_tokens: int) -> Iterator[Group]:
    chunk = max(1, PADDED_SCORES_PER_CHUNK // (num_heads * max(1, max_seqlen) ** 2))
    sequences = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    for index in sequences.split(chunk):
        first, last = cu_seqlens[index, None].long(), cu_seqlens[index + 1, None].long()
        rows = first + torch.arange(max_seqlen, device=cu_seqlens.device)
        valid = (rows < last) & (rows >= 0) & (rows < total_tokens)
        yield Group(rows.where(valid, total_tokens), index, valid)


@dataclass(frozen=True, eq=False)
class Arrangement:
    """What all layers of a forward compute together; each way only when it is asked for.

    Attributes:
        cu_seqlens, max_seqlen, num_heads, total_tokens: of the batch.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    num_heads: int
    total_tokens: int

    @cached_property
    def groups(self) -> list[Group]:
        """Sequences that share one batched product."""
        return list(group_sequences(self.cu_seqlens, self.max_seqlen, self.num_heads, self.total_tokens))

    @property
    def is_one_sequence(self) -> bool:
        """True if one sequence holds all rows."""
        rows = self.groups[0].rows if len(self.groups) == 1 else None
        return isinstance(rows, slice) and rows == slice(0, self.total_tokens)

    def sequences(self, dtype: torch.dtype) -> attention_cpu.Sequences:
        """Sequences as a CPU computes them in a dtype."""
        if dtype not in self._sequences:
            self._sequences[dtype] = attention_cpu.Sequences.of(self.cu_seqlens, dtype)
        return self._sequences[dtype]

    @cached_property
    def _sequences(self) -> dict[torch.dtype, attention_cpu.Sequences]:
        return {}


def attention_torch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    causal: bool,
    dropout: Dropout | None,
    arrangement: Arrangement | None,
) -> Tensor:
    """Compute `ops.varlen_attention`; None: arranged here."""
    p, seed, site = dropout or Dropout(0.0, None, 0)  # type: ignore[arg-type]
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or type(qkv) not in (Tensor, nn.Parameter):
        return _attention_op(qkv, cu_seqlens, max_seqlen, prefix_lens, causal, p, seed, site)
    arguments = (qkv, cu_seqlens, max_seqlen, prefix_lens, causal, p, seed, site, arrangement)
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _Attention.apply(*arguments)  # type: ignore[no-any-return]
    return _forward(*arguments)


def _take(packed: Tensor, group: Group) -> Tensor:
    """(total, ..., heads, head_dim) to (group, ..., heads, length, head_dim); a view where rows are a slice."""
    if isinstance(group.rows, slice):
        return packed[group.rows].movedim(0, -2)[None]
    rows = group.rows.reshape(-1).clamp(max=packed.shape[0] - 1)
    taken = packed.index_select(0, rows).unflatten(0, group.rows.shape)
    if group.valid is not None:  # 0 * inf is NaN: zero the padded values
        taken = taken.masked_fill(~group.valid.view(*group.valid.shape, *[1] * (packed.dim() - 1)), 0.0)
    return taken.movedim(1, -2)


def _operands(qkv: Tensor, group: Group) -> tuple[Tensor, ...]:
    """Give query, key and value, (group * num_heads, length, head_dim)."""
    if isinstance(group.rows, slice):
        return qkv[group.rows].permute(1, 2, 0, 3).unbind(0)
    return tuple(operand.flatten(0, 1) for operand in _take(qkv, group).unbind(1))


def _put(packed: Tensor, group: Group, values: Tensor) -> None:
    """The reverse of `_take`; `packed` has one row more, for padding."""
    values = values.movedim(-2, 1).to(packed.dtype)  # autocast may have changed it
    if isinstance(group.rows, slice):
        packed[group.rows] = values[0]
    else:
        packed.index_copy_(0, group.rows.reshape(-1), values.flatten(0, 1))


def visible(length: int, prefix_lens: Tensor | None, causal: bool, device: torch.device) -> Tensor:
    """Mask of scores that count, True where a row sees a column; see `ops.varlen_attention`.

    Args:
        length: rows and columns.
        prefix_lens: (sequences,) prefix lengths; None: none.
        causal: as in `ops.varlen_attention`.
        device: of the mask.

    Returns:
        (sequences or 1, 1, length, length) bool.
    """
    columns = torch.arange(length, device=device)
    prefix = columns.new_zeros(1, 1, 1, 1) if prefix_lens is None else prefix_lens.view(-1, 1, 1, 1)
    return (columns < prefix) | (columns[:, None] >= (columns if causal else prefix))


def _probabilities(query: Tensor, key: Tensor, group: Group, prefix_lens: Tensor | None, causal: bool) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) of (group * heads, length, head_dim) operands."""
    length, head_dim = query.shape[-2:]
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=1 / math.sqrt(head_dim))
    if group.valid is not None or prefix_lens is not None or causal:
        allowed = torch.ones(len(group.sequences), 1, length, length, dtype=torch.bool, device=query.device)
        if group.valid is not None:
            allowed = allowed & group.valid[:, None, None, :]
        if prefix_lens is not None or causal:
            prefixes = None if prefix_lens is None else prefix_lens[group.sequences]
            allowed = allowed & visible(length, prefixes, causal, query.device)
        grouped = scores.unflatten(0, (len(group.sequences), -1))
        scores = grouped.masked_fill(~allowed, torch.finfo(scores.dtype).min).flatten(0, 1)
    return torch.softmax(scores, -1)


class _Scores:
    """Dropout of a group's (group * heads, length, length) scores; nothing happens without one.

    Attributes:
        scale: factor of kept scores, which are cheaper to scale as a product of them.
    """

    def __init__(self, group: Group, num_heads: int, length: int, p: float, seed: Tensor | None, site: int) -> None:
        self.scale, self._keep = 1.0, None
        if not p:
            return
        assert seed is not None
        starts = torch.tensor([group.rows.start]) if isinstance(group.rows, slice) else group.rows[:, 0]
        draw = dropout_cpu.keep_scores if dropout_cpu.draws(seed) else keep_scores
        self.scale = keep_scale(p)
        self._keep = draw(seed, site, starts, num_heads, length, p).reshape(-1, length, length)

    def drop(self, scores: Tensor) -> Tensor:
        """Zero the scores that are dropped, of a tensor that nobody else reads."""
        if self._keep is None:
            return scores
        if dropout_cpu.takes(scores):
            return dropout_cpu.drop_(scores, self._keep)
        return torch.where(self._keep, scores, 0.0)

    def scaled(self, product: Tensor) -> Tensor:
        """A product of kept scores, or what they will be multiplied with."""
        return product if self._keep is None else product * self.scale


def _forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    causal: bool,
    p: float,
    seed: Tensor | None,
    site: int,
    arrangement: Arrangement | None = None,
) -> Tensor:
    num_heads, head_dim = qkv.shape[2:]
    total = qkv.shape[0]
    if total == 0:
        return qkv.new_empty(0, num_heads, head_dim)
    if arrangement is None:  # the operation for torch.compile, whose result is one and contiguous in every mode
        arrangement = Arrangement(cu_seqlens, max_seqlen, num_heads, total)
    elif not p and prefix_lens is None and not causal and attention_cpu.takes(qkv):
        return attention_cpu.attention_cpu(qkv, arrangement.sequences(qkv.dtype))
    elif arrangement.is_one_sequence:
        return _attend(qkv, arrangement.groups[0], prefix_lens, causal, p, seed, site)[0].transpose(0, 1).to(qkv.dtype)
    out = qkv.new_zeros(total + 1, num_heads, head_dim)
    for group in arrangement.groups:
        _put(out, group, _attend(qkv, group, prefix_lens, causal, p, seed, site))
    return out[:total]


def _attend(
    qkv: Tensor, group: Group, prefix_lens: Tensor | None, causal: bool, p: float, seed: Tensor | None, site: int
) -> Tensor:
    """Compute a group, (group, num_heads, length, head_dim)."""
    num_heads = qkv.shape[2]
    query, key, value = _operands(qkv, group)
    dropout = _Scores(group, num_heads, query.shape[1], p, seed, site)
    kept = dropout.drop(_probabilities(query, key, group, prefix_lens, causal))
    return dropout.scaled(torch.bmm(kept, value)).unflatten(0, (-1, num_heads))


def _backward(
    grad: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    causal: bool,
    p: float,
    seed: Tensor | None,
    site: int,
    arrangement: Arrangement | None = None,
) -> Tensor:
    """The gradient of `qkv`. Probabilities and mask are computed again rather than kept."""
    num_heads, head_dim = qkv.shape[2:]
    total = qkv.shape[0]
    grad_qkv = qkv.new_zeros(total + 1, *qkv.shape[1:])
    if total == 0:
        return grad_qkv[:0]
    arrangement = arrangement or Arrangement(cu_seqlens, max_seqlen, num_heads, total)
    for group in arrangement.groups:
        query, key, value = _operands(qkv, group)
        dropout = _Scores(group, num_heads, query.shape[1], p, seed, site)
        grad_context = dropout.scaled(_take(grad, group).flatten(0, 1))
        probabilities = _probabilities(query, key, group, prefix_lens, causal)
        grad_kept = dropout.drop(torch.bmm(grad_context, value.transpose(1, 2)))
        grad_kept = grad_kept.to(probabilities.dtype)  # autocast may have changed it
        grad_scores = torch._softmax_backward_data(grad_kept, probabilities, -1, probabilities.dtype)
        grad_query = torch.bmm(grad_scores, key) / math.sqrt(head_dim)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query) / math.sqrt(head_dim)
        grad_value = torch.bmm(dropout.drop(probabilities).transpose(1, 2), grad_context)
        grads = torch.stack((grad_query, grad_key, grad_value))
        _put(grad_qkv, group, grads.unflatten(1, (-1, num_heads)).transpose(0, 1))
    return grad_qkv[:total]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs[:-1], output)
        ctx.arrangement = inputs[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cu_seqlens, prefix_lens, seed = ctx.saved_tensors
        arguments = (cu_seqlens, ctx.max_seqlen, prefix_lens, ctx.causal, ctx.p, seed, ctx.site, ctx.arrangement)
        return _backward(grads[0], qkv, *arguments), *[None] * 8


_ARGUMENTS = "Tensor cu_seqlens, SymInt max_seqlen, Tensor? prefix_lens, bool causal, float p, Tensor? seed, int site"

# Opaque to torch.compile: the groups depend on the values of cu_seqlens.
_attention_op = torch.library.custom_op(
    "erniem_fast::varlen_attention_torch", _forward, mutates_args=(), schema=f"(Tensor qkv, {_ARGUMENTS}) -> Tensor"
)
_attention_backward_op = torch.library.custom_op(
    "erniem_fast::varlen_attention_torch_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor qkv, {_ARGUMENTS}) -> Tensor",
)


@_attention_op.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape[0], *qkv.shape[2:])


@_attention_backward_op.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, prefix_lens, ctx.causal, ctx.p, seed, ctx.site = inputs
    ctx.save_for_backward(qkv, cu_seqlens, prefix_lens, seed)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, cu_seqlens, prefix_lens, seed = ctx.saved_tensors
    arguments = (cu_seqlens, ctx.max_seqlen, prefix_lens, ctx.causal, ctx.p, seed, ctx.site)
    return _attention_backward_op(grad, qkv, *arguments), *[None] * 7


_attention_op.register_autograd(_grad, setup_context=_save)
