"""Contrastive losses of pairs of vectors: the other pairs of a batch are the negatives, those of all processes alike.

losses = in_batch_softmax(vectors, temperature=0.05)  # (num_pairs,), of (num_pairs, 2, hidden_size)

Sources: InfoNCE, van den Oord et al., arXiv 1807.03748, with in-batch negatives in both directions, as Feng et al.,
arXiv 2007.01852; the hardest negative, Faghri et al., arXiv 1707.05612, by which ERNIE-M was fine-tuned for Tatoeba
(arXiv 2012.15674).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all processes in the order of the ranks; gradients come back summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        # Every process sends as many rows as the one that has most.
        sent = rows.new_zeros((max(lengths), *rows.shape[1:]))
        sent[: len(rows)] = rows
        parts = [torch.zeros_like(sent) for _ in lengths]
        dist.all_gather(parts, sent)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.lengths)[dist.get_rank()], None


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, and the place of this one's first; its own alone where no gradient is kept.

    The gradient of a row is the sum of those that all processes' losses give it, so that losses summed over the
    processes have the gradients of one process with all rows.

    Args:
        rows: (num_rows, ...); their number may differ between processes.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not (several and torch.is_grad_enabled()):  # an evaluation may have more batches on one process
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    lengths = [int(count) for count in counts]
    found: Tensor = _Gather.apply(rows, lengths)  # type: ignore[no-untyped-call]
    return found, sum(lengths[: dist.get_rank()])


def in_batch_softmax(vectors: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions: each text is to find its partner among the batch's.

    Args:
        vectors: (num_pairs, 2, hidden_size), or (num_pairs, 3, hidden_size) with a negative for each pair, which the
            first text has to tell from the second.
        temperature: by which cosines are divided.

    Returns:
        (num_pairs,) float32, the mean of both directions. With several processes the batch is that of all of them.
    """
    return _both_directions(vectors, temperature, F.cross_entropy)


def hardest_negative(vectors: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy of each text's partner, and of the text most like it among the others.

    Args:
        vectors, temperature: see `in_batch_softmax`.

    Returns:
        (num_pairs,) float32, the mean of both directions. A batch of one pair has no negative.
    """
    return _both_directions(vectors, temperature, _binary)


LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "softmax": in_batch_softmax,
    "hardest-negative": hardest_negative,
}
"""Losses by the names of `--loss`."""


def _both_directions(vectors: Tensor, temperature: float, loss: Callable[..., Tensor]) -> Tensor:
    own = F.normalize(vectors.float(), dim=-1)
    everyone, first = gather(own)
    partners = torch.arange(first, first + len(own), device=own.device)
    candidates = everyone[:, 1:].transpose(0, 1).flatten(0, 1)  # partners, then negatives
    there = loss(own[:, 0] @ candidates.T / temperature, partners, reduction="none")
    back = loss(own[:, 1] @ everyone[:, 0].T / temperature, partners, reduction="none")
    return (there + back) / 2


def _binary(scores: Tensor, partners: Tensor, reduction: str) -> Tensor:
    """(num_texts, num_candidates) scores to (num_texts,)."""
    right = scores.gather(1, partners[:, None])
    wrong = scores.scatter(1, partners[:, None], -torch.inf).amax(1)
    return (F.softplus(-right[:, 0]) + F.softplus(wrong)) / 2
