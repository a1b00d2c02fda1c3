"""Varlen attention: softmax(Q K^T / sqrt(head_dim)) V of each packed sequence by itself, non-causal, with dropout.

Shapes. qkv: (total_tokens, 3, num_heads, head_dim), the packed product of the three projections, read in place.
out: (total_tokens, num_heads, head_dim). lse, delta: (num_heads, total_tokens) float32. The sequence i is rows
cu_seqlens[i] to cu_seqlens[i + 1]; rows past the last offset belong to none and give zeros.

Forward (online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiles: Dao, "FlashAttention-2", arXiv 2307.08691)

    S = scale Q K^T      P = exp(S - lse)      lse = log sum exp S      O = (P * keep / (1 - p)) V

and backward, with probabilities and mask computed again

    dV = (P * keep / (1 - p))^T dO      dP = dO V^T * keep / (1 - p)      delta = rowsum(dO * O)
    dS = P * (dP - delta)               dQ = scale dS K                   dK = scale dS^T Q

prefix_lens: rows of a sequence before its prefix length p see only columns before p; rows from p on see all.

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
from .dropout import keep_scale, keep_scores


def varlen_attention_oracle(
    qkv: Tensor,
    cu_seqlens: Tensor,
    prefix_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """The same by plain formulas, one sequence at a time, in the dtype of `qkv`: (out, lse)."""
    outs, lses = [], []
    for index, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        query, key, value = qkv[start:end].permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / math.sqrt(qkv.shape[-1])
        if prefix_lens is not None:
            place = torch.arange(end - start, device=qkv.device)
            hidden = (place[:, None] < prefix_lens[index]) & (place >= prefix_lens[index])
            scores = scores.masked_fill(hidden, -torch.inf)
        probabilities = scores.softmax(-1)
        if dropout_p:
            assert seed is not None
            keep = keep_scores(seed, site, cu_seqlens[index : index + 1], qkv.shape[2], end - start, dropout_p)
            probabilities = probabilities * keep[0] * keep_scale(dropout_p)
        outs.append((probabilities @ value).transpose(0, 1))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(lses, 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, cu_seqlens, tiles, ctx.max_seqlen, prefix_lens, ctx.dropout_p, seed, *ctx.rest = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, tiles, prefix_lens, seed)
    ctx.mark_non_differentiable(output[1])


def _grad(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    qkv, out, lse, cu_seqlens, tiles, prefix_lens, seed = ctx.saved_tensors
    grad_qkv = varlen_attention_backward(
        grad, qkv, out, lse, cu_seqlens, tiles, ctx.max_seqlen, prefix_lens, ctx.dropout_p, seed, *ctx.rest
    )
    return grad_qkv, *[None] * 8


_ARGUMENTS = (
    "Tensor cu_seqlens, Tensor tiles, SymInt max_seqlen, Tensor? prefix_lens, float dropout_p, Tensor? seed, int site, "
    "bool batch_invariant"
)
attention_tiles = Operation(
    "attention_tiles",
    "(Tensor cu_seqlens, SymInt max_seqlen, SymInt total_tokens, bool batch_invariant) -> Tensor",
    build_tiles,
    fake_tiles,
)
varlen_attention_backward = Operation(
    "varlen_attention_backward",
    f"(Tensor grad, Tensor qkv, Tensor out, Tensor lse, {_ARGUMENTS}) -> Tensor",
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
