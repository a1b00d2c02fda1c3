"""Varlen attention: softmax(Q K^T / sqrt(head_dim)) V of each packed sequence by itself, with dropout.

Shapes. qkv: (total_tokens, 3, num_heads, head_dim), the packed product of the three projections, read in place.
out: (total_tokens, num_heads, head_dim). lse, delta: (num_heads, total_tokens) float32. The sequence i is rows
cu_seqlens[i] to cu_seqlens[i + 1]; rows past the last offset belong to none and give zeros.

Forward (online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiles: Dao, "FlashAttention-2", arXiv 2307.08691)

    S = scale Q K^T      P = exp(S - lse)      lse = log sum exp S      O = (P * keep / (1 - p)) V

and backward, with probabilities and mask computed again

    dV = (P * keep / (1 - p))^T dO      dP = dO V^T * keep / (1 - p)      delta = rowsum(dO * O)
    dS = P * (dP - delta)               dQ = scale dS K                   dK = scale dS^T Q

prefix_lens: (num_sequences,) int32; rows of a sequence before its prefix length p see only columns before p; rows from
p on see all. causal: row i sees columns up to i, and all columns before its prefix length.

Sequences that fit a tile take one program a head for the whole backward; longer ones take a program a tile of rows (dQ)
and a program a tile of columns (dK, dV). Each element has one writer: no atomics. Several heads share a tile of 16 or
32 rows, stacked; scores across heads are masked.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .attention_backward import fake_backward, launch_backward
from .attention_forward import fake_forward, launch_forward
from .attention_tiles import build_tiles, fake_tiles
from .common import Operation
from .dropout import Dropout, keep_scale, keep_scores


def varlen_attention_oracle(
    qkv: Tensor,
    cu_seqlens: Tensor,
    prefix_lens: Tensor | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operation by plain formulas, one sequence at a time, in the dtype of `qkv`: (out, lse)."""
    outs, lses = [], []
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        q, k, v = qkv[start:end].permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / math.sqrt(qkv.shape[-1])
        if causal or prefix_lens is not None:
            columns = torch.arange(end - start, device=qkv.device)
            prefix = 0 if prefix_lens is None else prefix_lens[index]
            hidden = (columns >= prefix) & (columns[:, None] < (columns if causal else prefix))
            scores = scores.masked_fill(hidden, -torch.inf)
        p = scores.softmax(-1)
        if dropout is not None and dropout.p:
            starts = cu_seqlens[index : index + 1]
            keep = keep_scores(dropout.seed, dropout.site, starts, qkv.shape[2], end - start, dropout.p)
            p = p * keep[0] * keep_scale(dropout.p)
        outs.append((p @ v).transpose(0, 1))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses, 1)


def _save(ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
    qkv, cu_seqlens, tiles, ctx.max_seqlen, ctx.block_m, prefix_lens, ctx.causal, _ = args
    return qkv, *results, cu_seqlens, tiles, prefix_lens


def _grad(ctx: Any, do: Tensor, saved: list[Tensor | None], dropout: Dropout | None) -> tuple[Tensor]:
    *operands, prefix_lens = saved
    shared = (ctx.max_seqlen, ctx.block_m, prefix_lens, ctx.causal, dropout)
    return (varlen_attention_backward(do, *operands, *shared),)


_ARGUMENTS = (
    "Tensor cu_seqlens, Tensor tiles, SymInt max_seqlen, int block_m, Tensor? prefix_lens, bool causal, "
    "Dropout? dropout"
)
attention_tiles = Operation(
    "attention_tiles",
    "(Tensor cu_seqlens, SymInt max_seqlen, SymInt total_tokens, int block_m) -> Tensor",
    build_tiles,
    fake_tiles,
)
varlen_attention_backward = Operation(
    "varlen_attention_backward",
    f"(Tensor do, Tensor qkv, Tensor out, Tensor lse, {_ARGUMENTS}) -> Tensor",
    launch_backward,
    fake_backward,
)
varlen_attention = Operation(
    "varlen_attention",
    f"(Tensor qkv, {_ARGUMENTS}) -> (Tensor, Tensor)",
    launch_forward,
    fake_forward,
    _save,
    _grad,
)
