"""Varlen attention: every packed sequence attends to itself."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .attention_torch import Arrangement, attention_torch
from .backend import backend_after_move, check_devices, is_batch_invariant, resolve_backend
from .dropout import Dropout, check_dropout


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The work that all attention layers of a forward share, computed once from the lengths.

    Attributes:
        backend: "triton" or "torch".
        num_sequences, max_seqlen, total_tokens: sizes of the batch it was made for.
        block_m: rows of a tile; 0: chosen by the lengths.
        tiles: list of the kernels' tiles on the device; None on the torch backend.
        arrangement: of the sequences for torch; None where every layer makes its own.
    """

    backend: str
    num_sequences: int
    max_seqlen: int
    total_tokens: int
    block_m: int = 0
    tiles: Tensor | None = None
    arrangement: Arrangement | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "AttentionPlan":
        """Move the plan to another device; where the kernels do not run there, to the torch backend."""
        target = torch.device(device)
        if self.tiles is None:
            return replace(self, arrangement=self.arrangement if target.type == "cpu" else None)
        if backend_after_move(self.backend, self.tiles.device, target) == "torch":
            return replace(self, backend="torch", block_m=0, tiles=None)
        return replace(self, tiles=self.tiles.to(target, non_blocking=non_blocking))


def attention_plan(
    cu_seqlens: Tensor,
    max_seqlen: int,
    total_tokens: int,
    *,
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> AttentionPlan:
    """Plan `varlen_attention` for a batch, so that the layers of a model share it. No host sync off the CPU.

    Args:
        cu_seqlens, max_seqlen: as in `varlen_attention`.
        total_tokens, num_heads, head_dim, dtype: of its `qkv`.
        backend: "auto", "triton" or "torch".

    Raises:
        ValueError: as `varlen_attention`.
    """
    _check_offsets(cu_seqlens, max_seqlen)
    num_sequences = cu_seqlens.shape[0] - 1
    backend = resolve_backend(backend, cu_seqlens.device, dtype, head_dim=head_dim)
    if backend == "triton":
        from ..kernels import attention as kernel
        from ..kernels.configs import INVARIANT_TILE

        block_m = INVARIANT_TILE if is_batch_invariant() else 0
        tiles = kernel.attention_tiles(cu_seqlens, max_seqlen, total_tokens, block_m)
        return AttentionPlan(backend, num_sequences, max_seqlen, total_tokens, block_m, tiles)
    arrangement = None
    if cu_seqlens.device.type == "cpu" and type(cu_seqlens) is Tensor and not torch.compiler.is_compiling():
        _check_values(cu_seqlens, max_seqlen, total_tokens)
        arrangement = Arrangement(cu_seqlens, max_seqlen, num_heads, total_tokens)
    return AttentionPlan(backend, num_sequences, max_seqlen, total_tokens, arrangement=arrangement)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    prefix_lens: Tensor | None = None,
    causal: bool = False,
    dropout: Dropout | None = None,
    plan: AttentionPlan | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V of each sequence by itself, with dropout on the probabilities.

    Source: Vaswani et al., arXiv 1706.03762; by tiles: Dao, "FlashAttention-2", arXiv 2307.08691.

    Args:
        qkv: (total_tokens, 3, num_heads, head_dim), the packed product of the three projections.
        cu_seqlens: (num_sequences + 1,) int32, from 0 to total_tokens. Sequences may be empty.
        max_seqlen: tokens in the longest sequence, or more.
        prefix_lens: (num_sequences,) int32: rows of a sequence before its prefix length p see only columns before
            p, rows from p on see all. None, 0 and the sequence's length: full attention, unless it is causal.
        causal: True if row i sees columns up to i only, and with prefix_lens all columns before its prefix length.
        dropout: None for none.
        plan: from `attention_plan` of the same offsets; None: made here.
        backend: "auto", "triton" or "torch"; with a plan, the plan's.

    Returns:
        (total_tokens, num_heads, head_dim). Differentiable once in `qkv`; the gradient is deterministic.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, offsets on a CPU that cannot be right, a plan of another
            batch or from outside the `batch_invariant()` that it is used in, or an unknown backend.
    """
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv must have shape (total_tokens, 3, num_heads, head_dim), got {tuple(qkv.shape)}")
    _check_offsets(cu_seqlens, max_seqlen)
    total_tokens, _, num_heads, head_dim = qkv.shape
    num_sequences = cu_seqlens.shape[0] - 1
    if prefix_lens is not None:
        if prefix_lens.shape != (num_sequences,) or prefix_lens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"prefix_lens must be int32 of shape ({num_sequences},) (num_sequences), "
                f"got {prefix_lens.dtype} {tuple(prefix_lens.shape)}"
            )
        prefix_lens = prefix_lens.to(torch.int32)
    if plan is None:
        plan = attention_plan(
            cu_seqlens, max_seqlen, total_tokens, num_heads=num_heads, head_dim=head_dim, dtype=qkv.dtype,
            backend=backend,
        )  # fmt: skip
    elif (plan.num_sequences, plan.total_tokens, plan.max_seqlen) != (num_sequences, total_tokens, max_seqlen):
        raise ValueError(
            f"plan must be attention_plan's of the same batch, {num_sequences} sequences of at most {max_seqlen} in "
            f"{total_tokens} tokens, got one of {plan.num_sequences} of at most {plan.max_seqlen} in "
            f"{plan.total_tokens}"
        )
    if is_batch_invariant() and not plan.block_m:
        raise ValueError("plan must be made in batch_invariant() to be used there, got one whose tiles vary")
    check_devices(qkv=qkv, cu_seqlens=cu_seqlens, prefix_lens=prefix_lens, tiles=plan.tiles)
    check_dropout(dropout, qkv.device)
    if plan.backend == "torch":
        return attention_torch(qkv, cu_seqlens, max_seqlen, prefix_lens, causal, dropout, plan.arrangement)
    from ..kernels import attention as kernel

    resolve_backend("triton", qkv.device, qkv.dtype, head_dim=head_dim)
    operands = (qkv, cu_seqlens, plan.tiles, max_seqlen, plan.block_m)
    out, _ = kernel.varlen_attention(*operands, prefix_lens, causal, dropout)
    return out  # type: ignore[no-any-return]


def _check_values(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int) -> None:
    offsets = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(offsets)]
    if offsets[0] != 0 or min(lengths) < 0 or offsets[-1] > total_tokens:
        raise ValueError(
            f"cu_seqlens must start at 0, never fall and end at {total_tokens} (total_tokens) or before, "
            f"got first {offsets[0]}, last {offsets[-1]}, smallest step {min(lengths)}"
        )
    if max(lengths) > max_seqlen:
        raise ValueError(f"max_seqlen must be at least {max(lengths)}, the longest sequence, got {max_seqlen}")


def _check_offsets(cu_seqlens: Tensor, max_seqlen: int) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be int32 of shape (num_sequences + 1,), got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if not isinstance(max_seqlen, int | torch.SymInt):
        raise ValueError(f"max_seqlen must be an int, got {type(max_seqlen).__name__}")
