"""Benchmark of attention within each of the packed sequences."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD, TINY, K, Setting, Shape, batch_of, mixed, uniform
from bench.engine.torch_compile import compiled, needs_compiler
from bench.engine.work import STATISTIC, Work, work_of
from erniem_fast import ops
from erniem_fast.kernels.dropout import keep_scale, keep_scores

from .inputs import COMPILED, CPU_SHAPES, EAGER, SITE, TINY_SHAPE, VARIANTS, Compute, OpInputs

SHAPES = (
    mixed("pairs", 64 * K, bfloat16=0),
    mixed("xquad", 64 * K, bfloat16=1),
    *(uniform(length, 64 * K, bfloat16=2 + i) for i, length in enumerate((512, 128, 64, 32, 16, 256))),
    mixed("pairs", 4 * K, bfloat16=8),
    mixed("xquad", 4 * K, bfloat16=9),
    mixed("pairs", 512 * K, bfloat16=10),
    mixed("xquad", 512 * K, bfloat16=11),
    mixed("pairs", 16 * K, bfloat16=12),
    uniform(512, 16 * K, bfloat16=13),
    uniform(512, 512 * K, bfloat16=14),
    *CPU_SHAPES,
)
CHECKED_SEQUENCES = 24
"""Number of sequences that are compared: the first, the last, and some between."""


class AttentionInputs(OpInputs):
    """Operands of attention. Leaves: qkv (total_tokens, 3, num_heads, head_dim)."""

    def operands(self) -> tuple[Tensor, ...]:
        return (self.setting.randn(self.tokens, 3, self.sizes.num_heads, self.sizes.head_dim),)

    def out_shape(self) -> tuple[int, ...]:
        return self.sizes.num_heads, self.sizes.head_dim

    def least_work(self) -> Work:
        sizes, setting = self.sizes, self.setting
        return attention_work(self.lengths, sizes.num_heads, sizes.head_dim, setting.itemsize, setting.passes)

    def checked_spans(self) -> list[tuple[int, int]]:
        """Begin and end of each sequence that is compared."""
        spans = list(pairwise([0, *torch.tensor(self.lengths).cumsum(0).tolist()]))
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

    def mask(self) -> Tensor:
        """(batch, 1, 1, seq_len) bool, True at real tokens."""
        return self.batch.attention_mask.bool()[:, None, None, :]

    def prepare_packed(self, make: Callable[[float], Compute]) -> Prepared:
        """A provider that takes query, key and value (total_tokens, num_heads, head_dim) apart."""
        parts = [part.contiguous() for part in self.leaves[0].unbind(1)]
        return self.prepare(make, parts, to_shared=_joined)

    def prepare_padded(self, make: Callable[[float], Compute]) -> Prepared:
        """A provider that takes them padded, (batch, num_heads, seq_len, head_dim); padding is not timed."""
        packed = self.batch.packed
        rows = [*self.leaves[0].unbind(1), self.grad]
        *parts, grad = (packed.to_grid(one).transpose(1, 2).contiguous() for one in rows)

        def to_shared(results: list[Tensor]) -> list[Tensor]:
            return _joined([packed.from_grid(padded.transpose(1, 2)) for padded in results])

        return self.prepare(make, parts, grad, to_shared)


def _joined(results: list[Tensor]) -> list[Tensor]:
    """The output and, where there are gradients of query, key and value, the one of qkv."""
    return [results[0], torch.stack(results[1:], 1)] if len(results) > 1 else results


def attention_work(lengths: Sequence[int], num_heads: int, head_dim: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Work of two products forward and five backward, one for the scores again. Keeps the log-sum-exp.

    Args:
        lengths: tokens of each sequence.
        num_heads, head_dim: sizes of the layer.
        itemsize: bytes of an element of qkv, out and their gradients.
        passes: one of PASSES.
    """
    product = 2 * sum(length * length for length in lengths) * num_heads * head_dim
    rows = sum(lengths) * num_heads * head_dim * itemsize
    lse = sum(lengths) * num_heads * STATISTIC
    # qkv, out; then qkv, out, its gradient, and the gradient of qkv.
    return work_of(passes, Work(2 * product, 4 * rows), lse, Work(5 * product, 8 * rows + lse))


TINY_UNIFORM = batch_of(8, 8, name="tiny-uniform", sizes=TINY, histogram="all 8")
ATTENTION = Benchmark("attention", AttentionInputs, SHAPES, (TINY_SHAPE, TINY_UNIFORM), VARIANTS)


@ATTENTION.provider(OURS)
def _(inputs: AttentionInputs) -> Prepared:
    packed = inputs.batch.packed
    # A model makes the plan once a forward: it is not timed.
    plan = ops.attention_plan(
        packed.cu_seqlens, packed.max_seqlen, packed.total_tokens, num_heads=inputs.sizes.num_heads,
        head_dim=inputs.sizes.head_dim, dtype=inputs.setting.dtype, backend=inputs.backend,
    )  # fmt: skip

    def make(p: float) -> Compute:
        return lambda qkv: ops.varlen_attention(
            qkv, packed.cu_seqlens, packed.max_seqlen, dropout=inputs.dropout(p), plan=plan
        )

    return inputs.prepare(make, same_mask=True)


def attention_chain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """Attention on padded operands as in transformers 4.40.2."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return F.dropout(F.softmax(scores, -1), dropout_p) @ value


@ATTENTION.provider(EAGER, note="padded, unfused")
def _(inputs: AttentionInputs) -> Prepared:
    mask = inputs.mask()
    return inputs.prepare_padded(lambda p: lambda q, k, v: attention_chain(q, k, v, mask, p))


@ATTENTION.provider(COMPILED, note="padded, the chain of `torch` compiled", needs=needs_compiler)
def _(inputs: AttentionInputs) -> Prepared:
    mask, chain = inputs.mask(), compiled(attention_chain, inputs.setting.device, (*[(0, 2)] * 3, (0, 3)))
    return inputs.prepare_padded(lambda p: lambda q, k, v: chain(q, k, v, mask, p))


def needs_no_dropout(shape: Shape, setting: Setting) -> str | None:
    return "has no dropout" if setting.dropout_p else None


@ATTENTION.provider("varlen_attn", devices=("cuda",), needs=needs_no_dropout)
def _(inputs: AttentionInputs) -> Prepared:
    offsets, longest = inputs.batch.packed.cu_seqlens, inputs.batch.packed.max_seqlen
    return inputs.prepare_packed(lambda _: lambda q, k, v: torch_varlen(q, k, v, offsets, longest))


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """PyTorch's own attention of packed sequences. CUDA, 16 bits, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    # The arguments that all its versions since torch 2.10 have.
    return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)  # type: ignore[return-value]


@ATTENTION.provider("nested sdpa", note="jagged nested tensors")
def _(inputs: AttentionInputs) -> Prepared:
    offsets, longest = inputs.batch.packed.cu_seqlens.long(), inputs.batch.packed.max_seqlen
    shortest = min(inputs.lengths)

    def nest(part: Tensor) -> Tensor:
        nested = torch.nested.nested_tensor_from_jagged(part, offsets, min_seqlen=shortest, max_seqlen=longest)
        return nested.transpose(1, 2)

    def make(p: float) -> Compute:
        return lambda query, key, value: (
            F.scaled_dot_product_attention(nest(query), nest(key), nest(value), dropout_p=p).transpose(1, 2).values()
        )

    return inputs.prepare_packed(make)


def needs_one_length(shape: Shape, setting: Setting) -> str | None:
    return None if len(set(shape.batches[0])) == 1 else "takes no mask, and the lengths differ"


def _sdpa(inputs: AttentionInputs, backend: SDPBackend | None = None) -> Prepared:
    mask = None if needs_one_length(inputs.shape, inputs.setting) is None else inputs.mask()

    def make(p: float) -> Compute:
        def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with nullcontext() if backend is None else sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)

        return compute

    return inputs.prepare_padded(make)


@ATTENTION.provider("padded sdpa", note="the backend that PyTorch picks")
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs)


@ATTENTION.provider("padded sdpa, flash", devices=("cuda",), needs=needs_one_length)
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs, SDPBackend.FLASH_ATTENTION)


@ATTENTION.provider("padded sdpa, cudnn", devices=("cuda",))
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs, SDPBackend.CUDNN_ATTENTION)
