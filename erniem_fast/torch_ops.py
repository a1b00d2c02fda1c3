"""The torch backend of `ops`: fast on a CPU, right on CUDA. Shapes and meanings stand in `ops`."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.dropout import keep_rows, keep_scale, keep_scores

SCORES_PER_CHUNK = 512 * 1024
"""Most attention scores computed at once on a CPU: they should stay near the cache."""
PADDED_SCORES_PER_CHUNK = 256 * 1024 * 1024
"""The same elsewhere: they should fit into memory several times over."""


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
    tiles: None = None,
) -> Tensor:
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and qkv.requires_grad):
        return _attention(qkv, cu_seqlens, max_seqlen, prefix_lens, dropout_p, seed, site)
    return _attention_forward(qkv, cu_seqlens, max_seqlen, prefix_lens, dropout_p, seed, site)


Group = tuple[Tensor | slice, Tensor, Tensor | None]
"""Sequences that share one batched product: (rows, sequences, valid).

rows: (group, length) row indices, total_tokens where there is none; or the slice of a single sequence, used in place.
sequences: (group,) indices of the sequences.
valid: (group, length) bool where rows are padded, else None.
"""


def _groups(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total_tokens: int) -> Iterator[Group]:
    # Reading the lengths would stall a GPU.
    if cu_seqlens.device.type == "cpu":
        return _groups_of_equal_length(cu_seqlens, num_heads)
    return _padded_groups(cu_seqlens, max_seqlen, num_heads, total_tokens)


def _groups_of_equal_length(cu_seqlens: Tensor, num_heads: int) -> Iterator[Group]:
    by_length: dict[int, list[int]] = {}
    offsets = cu_seqlens.tolist()
    for sequence, (start, end) in enumerate(pairwise(offsets)):
        by_length.setdefault(end - start, []).append(sequence)
    by_length.pop(0, None)
    for length, sequences in by_length.items():
        chunk = max(1, SCORES_PER_CHUNK // (num_heads * length * length))
        columns = torch.arange(length)
        for begin in range(0, len(sequences), chunk):
            index = torch.tensor(sequences[begin : begin + chunk])
            if len(index) == 1:
                start = offsets[sequences[begin]]
                yield slice(start, start + length), index, None
            else:
                yield cu_seqlens[index, None].long() + columns, index, None


def _padded_groups(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total_tokens: int) -> Iterator[Group]:
    chunk = max(1, PADDED_SCORES_PER_CHUNK // (num_heads * max(1, max_seqlen) ** 2))
    sequences = torch.arange(cu_seqlens.shape[0] - 1, device=cu_seqlens.device)
    for index in sequences.split(chunk):
        first, last = cu_seqlens[index, None].long(), cu_seqlens[index + 1, None].long()
        rows = first + torch.arange(max_seqlen, device=cu_seqlens.device)
        valid = (rows < last) & (rows >= 0) & (rows < total_tokens)
        yield rows.where(valid, total_tokens), index, valid


def _take(packed: Tensor, rows: Tensor | slice, valid: Tensor | None) -> Tensor:
    """(total, ..., heads, head_dim) to (group, ..., heads, length, head_dim); a view where rows are a slice."""
    if isinstance(rows, slice):
        return packed[rows].movedim(0, -2)[None]
    taken = packed.index_select(0, rows.reshape(-1).clamp(max=packed.shape[0] - 1)).unflatten(0, rows.shape)
    if valid is not None:  # a probability of 0 does not silence an infinite value
        taken = taken.masked_fill(~valid.view(*valid.shape, *[1] * (packed.dim() - 1)), 0.0)
    return taken.movedim(1, -2)


def _put(packed: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """The reverse of `_take`; `packed` has one row more, for what belongs nowhere."""
    values = values.movedim(-2, 1).to(packed.dtype)  # autocast may have changed it
    if isinstance(rows, slice):
        packed[rows] = values[0]
    else:
        packed.index_copy_(0, rows.reshape(-1), values.flatten(0, 1))


def _probabilities(query: Tensor, key: Tensor, valid: Tensor | None, prefix_lens: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) of (group * heads, length, head_dim) operands."""
    length, head_dim = query.shape[-2:]
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=1 / math.sqrt(head_dim))
    if valid is not None or prefix_lens is not None:
        group = valid.shape[0] if prefix_lens is None else prefix_lens.shape[0]  # type: ignore[union-attr]
        allowed = torch.ones(group, 1, length, length, dtype=torch.bool, device=query.device)
        if valid is not None:
            allowed = allowed & valid[:, None, None, :]
        if prefix_lens is not None:
            place = torch.arange(length, device=query.device)
            prefix = prefix_lens.view(-1, 1, 1, 1)
            allowed = allowed & ((place[:, None] >= prefix) | (place < prefix))
        grouped = scores.unflatten(0, (group, -1))
        scores = grouped.masked_fill(~allowed, torch.finfo(scores.dtype).min).flatten(0, 1)
    return torch.softmax(scores, -1)


def _keep(rows: Tensor | slice, num_heads: int, length: int, p: float, seed: Tensor, site: int) -> Tensor:
    """(group * heads, length, length) bool: which probabilities dropout keeps."""
    starts = torch.tensor([rows.start]) if isinstance(rows, slice) else rows[:, 0]
    return keep_scores(seed, site, starts, num_heads, length, p).flatten(0, 1)


def _apply_keep(keep: Tensor, x: Tensor, p: float) -> Tensor:
    return torch.where(keep, x * keep_scale(p), 0.0)


def _attention_forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    num_heads, head_dim = qkv.shape[2:]
    total = qkv.shape[0]
    out = qkv.new_zeros(total + 1, num_heads, head_dim)
    if total == 0:
        return out[:0]
    for rows, sequences, valid in _groups(cu_seqlens, max_seqlen, num_heads, total):
        # (group, 3, heads, length, head_dim)
        query, key, value = (operand.flatten(0, 1) for operand in _take(qkv, rows, valid).unbind(1))
        prefix = None if prefix_lens is None else prefix_lens[sequences]
        probabilities = _probabilities(query, key, valid, prefix)
        if dropout_p:
            assert seed is not None
            keep = _keep(rows, num_heads, query.shape[1], dropout_p, seed, site)
            probabilities = _apply_keep(keep, probabilities, dropout_p)
        context = torch.bmm(probabilities, value)
        _put(out, rows, context.unflatten(0, (-1, num_heads)))
    return out[:total]


def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    """The gradient of `qkv`. Probabilities and mask are computed again rather than kept."""
    num_heads, head_dim = qkv.shape[2:]
    total = qkv.shape[0]
    grad_qkv = qkv.new_zeros(total + 1, *qkv.shape[1:])
    if total == 0:
        return grad_qkv[:0]
    for rows, sequences, valid in _groups(cu_seqlens, max_seqlen, num_heads, total):
        query, key, value = (operand.flatten(0, 1) for operand in _take(qkv, rows, valid).unbind(1))
        grad_context = _take(grad, rows, valid).flatten(0, 1)
        prefix = None if prefix_lens is None else prefix_lens[sequences]
        probabilities = _probabilities(query, key, valid, prefix)
        kept, grad_probabilities = probabilities, torch.bmm(grad_context, value.transpose(1, 2))
        if dropout_p:
            assert seed is not None
            keep = _keep(rows, num_heads, query.shape[1], dropout_p, seed, site)
            kept = _apply_keep(keep, probabilities, dropout_p)
            grad_probabilities = _apply_keep(keep, grad_probabilities, dropout_p)
        grad_value = torch.bmm(kept.transpose(1, 2), grad_context)
        row_sums = (probabilities * grad_probabilities).sum(-1, keepdim=True)
        grad_scores = probabilities * (grad_probabilities - row_sums) / math.sqrt(head_dim)
        grads = torch.stack((torch.bmm(grad_scores, key), torch.bmm(grad_scores.transpose(1, 2), query), grad_value))
        _put(grad_qkv, rows, grads.unflatten(1, (-1, num_heads)).transpose(0, 1))
    return grad_qkv[:total]


_ARGUMENTS = "Tensor cu_seqlens, SymInt max_seqlen, Tensor? prefix_lens, float dropout_p, Tensor? seed, int site"

# Opaque to torch.compile: the groups depend on the values of cu_seqlens.
_attention = torch.library.custom_op(
    "erniem_fast::varlen_attention_torch",
    _attention_forward,
    mutates_args=(),
    schema=f"(Tensor qkv, {_ARGUMENTS}) -> Tensor",
)
_attention_grad = torch.library.custom_op(
    "erniem_fast::varlen_attention_torch_backward",
    _attention_backward,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor qkv, {_ARGUMENTS}) -> Tensor",
)


@_attention.register_fake
def _(qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape[0], *qkv.shape[2:])


@_attention_grad.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, prefix_lens, ctx.dropout_p, seed, ctx.site = inputs
    ctx.save_for_backward(qkv, cu_seqlens, prefix_lens, seed)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, cu_seqlens, prefix_lens, seed = ctx.saved_tensors
    grad_qkv = _attention_grad(grad, qkv, cu_seqlens, ctx.max_seqlen, prefix_lens, ctx.dropout_p, seed, ctx.site)
    return grad_qkv, None, None, None, None, None, None


_attention.register_autograd(_grad, setup_context=_save)


class _Dropout(torch.autograd.Function):
    """Dropout of (rows, columns) that computes its mask again in backward."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
        return _drop(x, seed, site, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, seed, ctx.site, ctx.p = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        return _drop(grads[0], seed, ctx.site, ctx.p), None, None, None


def _drop(x: Tensor, seed: Tensor, site: int, p: float) -> Tensor:
    keep = keep_rows(seed, site, torch.arange(x.shape[0], device=x.device), x.shape[1], p)
    return _apply_keep(keep, x, p)


def dropout(x: Tensor, dropout_p: float, seed: Tensor | None, site: int) -> Tensor:
    return x if dropout_p == 0 else _Dropout.apply(x, seed, site, dropout_p)  # type: ignore[no-any-return]


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    x = x if linear_bias is None else x + linear_bias
    return F.layer_norm(dropout(x, dropout_p, seed, site) + residual, weight.shape, weight, bias, eps)


def bias_gelu_dropout(x: Tensor, bias: Tensor | None, dropout_p: float, seed: Tensor | None, site: int) -> Tensor:
    return dropout(F.gelu(x if bias is None else x + bias), dropout_p, seed, site)


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    return F.linear(bias_gelu_dropout(F.linear(x, weight1, bias1), None, dropout_p, seed, site), weight2)


def embedding_layer_norm(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor,
    word_weight: Tensor,
    position_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    padding_idx: int | None,
    position_padding_idx: int | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    if position_ids.device.type != "cpu" or torch.compiler.is_compiling():
        # Nobody has read these values: an index out of range must not become a device-side assert.
        position_ids = position_ids.clamp(0, position_weight.shape[0] - 1)
        input_ids = None if input_ids is None else input_ids.clamp(0, word_weight.shape[0] - 1)
    words = inputs_embeds if input_ids is None else F.embedding(input_ids, word_weight, padding_idx)
    assert words is not None
    rows = words + F.embedding(position_ids, position_weight, position_padding_idx)
    return dropout(F.layer_norm(rows, weight.shape, weight, bias, eps), dropout_p, seed, site)
