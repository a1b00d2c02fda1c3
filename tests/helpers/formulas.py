"""Plain formulas of the fused operations, with dropout from an independent Philox."""

from itertools import pairwise

import torch
from torch import Tensor

from erniem_fast.ops import Dropout
from helpers import philox


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def plain_attention(
    qkv: Tensor,
    lengths: list[int],
    prefix_lens: list[int] | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
) -> Tensor:
    outputs = []
    for index, (start, end) in enumerate(pairwise(offsets(lengths).tolist())):
        length = end - start
        query, key, value = qkv[start:end].permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        prefix = 0 if prefix_lens is None else prefix_lens[index]
        for row in range(length if causal else min(prefix, length)):
            scores[:, row, max(row + 1, prefix) if causal else prefix :] = -torch.inf
        probabilities = scores.softmax(-1)
        if dropout is not None:
            p, seed, site = dropout
            keep = [philox.keep_scores(seed, site, start, head, length, length, p) for head in range(qkv.shape[2])]
            probabilities = probabilities * torch.stack(keep) * philox.scale(p)
        outputs.append((probabilities @ value).transpose(0, 1))
    return torch.cat(outputs)


def drop_rows(x: Tensor, dropout: Dropout | None) -> Tensor:
    if dropout is None:
        return x
    keep = philox.keep_rows(dropout.seed, dropout.site, 0, *x.shape, dropout.p)
    return x * keep * philox.scale(dropout.p)


def assert_agrees(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare float64 results and their gradients."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(found)
    for one, two in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
