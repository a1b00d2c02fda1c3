"""Dropout's masks against an independent Philox, and their statistics."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import philox
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast import ops
from erniem_fast.kernels import dropout as dropout_kernel
from erniem_fast.ops import Dropout


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**62 - 1),
    site=st.integers(0, 2**31),
    start=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    p=st.floats(0, 0.999999),
)
def test_masks_are_philox(seed: int, site: int, start: int, rows: int, columns: int, p: float) -> None:
    drawn_seed = torch.tensor([seed])
    found = dropout_kernel.keep_rows(drawn_seed, site, torch.arange(start, start + rows), columns, p)
    assert torch.equal(found, philox.keep_rows(drawn_seed, site, start, rows, columns, p))
    scores = dropout_kernel.keep_scores(drawn_seed, site, torch.tensor([3, start]), 2, columns, p)
    for head in range(2):
        expected = philox.keep_scores(drawn_seed, site, start, head, columns, columns, p)
        assert torch.equal(scores[1, head], expected)


# Counter, key and words as Random123, the authors' library, gives them: of zeros, of ones, and of digits of pi.
KNOWN = {
    (2, 7): [
        ("00000000 00000000", "00000000", "257a3673 cd26be2a"),
        ("ffffffff ffffffff", "ffffffff", "ab302c4d 3dc9d239"),
        ("243f6a88 85a308d3", "13198a2e", "bedbbe6b e4c770b3"),
    ],
    (2, 10): [
        ("00000000 00000000", "00000000", "ff1dae59 6cd10df2"),
        ("ffffffff ffffffff", "ffffffff", "2c3f628b ab4fd7ad"),
        ("243f6a88 85a308d3", "13198a2e", "dd7ce038 f62a4c12"),
    ],
    (4, 7): [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ],
    (4, 10): [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
}


@pytest.mark.parametrize(("width", "rounds"), KNOWN)
def test_known_answers(width: int, rounds: int) -> None:
    for row in KNOWN[width, rounds]:
        counter, key, expected = ([int(word, 16) for word in words.split()] for words in row)
        words, keys = [torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key]
        numbers = [np.array(word) for word in counter]
        if width == 2:
            found = dropout_kernel.philox_2((words[0], words[1]), keys[0], rounds)
            independent = philox.philox_2(numbers, key[0], rounds)
        else:
            found = dropout_kernel.philox(tuple(words), tuple(keys), rounds)
            independent = philox.philox(numbers, key[0] + (key[1] << 32), rounds)
        assert torch.cat(found).tolist() == expected
        assert independent.tolist() == expected


def masks(p: float) -> dict[str, torch.Tensor]:
    """Masks of both mappings, (64, rows, columns), of 16 seeds by 4 neighbouring sites."""
    seeds = [ops.dropout.draw_seed(torch.device("cpu")) for _ in range(14)]
    seeds += [seeds[0] + 1, seeds[0] + 2**32]
    start = torch.randint(0, 2**20, (1,))
    runs = [(seed, site) for seed in seeds for site in range(4)]
    return {
        "rows": torch.stack([dropout_kernel.keep_rows(*run, torch.arange(200) + start, 208, p) for run in runs]),
        "scores": torch.stack([dropout_kernel.keep_scores(*run, start, 1, 208, p)[0, 0] for run in runs]),
        "heads": torch.cat([dropout_kernel.keep_scores(*run, start, 4, 208, p)[0] for run in runs[:64:4]]),
    }


def improbable(means: torch.Tensor, variance: float, count: int) -> bool:
    """True if any mean of `count` independent values lies further off 0 than luck allows, or all of them together do.

    A right generator fails one such check in about 10**9: by the tail of the normal distribution, and by that of
    chi-square (Laurent and Massart, 2000).
    """
    z = means.double().flatten() * math.sqrt(count / variance)
    limit = math.sqrt(2 * math.log(2 * z.numel() * 1e9))  # P(|z| > t) <= 2 exp(-t^2 / 2)
    chi = (z.square().sum() - z.numel()) / math.sqrt(2 * z.numel())
    return bool(z.abs().max() > limit or chi.abs() > 6.5 + 42 / math.sqrt(2 * z.numel()))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_look_random(p: float) -> None:
    """Means of rows, columns and places in a call, and correlations over lags, heads, sites and seeds."""
    exact = dropout_kernel.threshold(p) / 65536
    variance = exact * (1 - exact)
    for name, mask in masks(p).items():
        x = mask.float() - (1 - exact)
        count, rows, columns = x.shape
        assert not improbable(x.mean(), variance, x.numel()), f"{name}: mean"
        assert not improbable(x.mean((1, 2)), variance, rows * columns), f"{name}: mean of a seed and site"
        assert not improbable(x.mean((0, 2)), variance, count * columns), f"{name}: rows"
        assert not improbable(x.mean((0, 1)), variance, count * rows), f"{name}: columns"
        places = x[:, : rows // 16 * 16].unflatten(2, (-1, 16)).unflatten(1, (-1, 16)).mean((0, 1, 3))
        assert not improbable(places, variance, count * (rows // 16) * (columns // 16)), f"{name}: places of a patch"
        for down, right in [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 64), (1, 0), (8, 0), (16, 0), (8, 8), (1, 1)]:
            product = x[:, down:, right:] * x[:, : rows - down, : columns - right]
            lag = f"{name}: lag of {down} rows and {right} columns"
            assert not improbable(product.mean(), variance**2, product.numel()), lag
        pairs = torch.einsum("aij,bij->ab", x, x) / (rows * columns)
        apart = pairs[torch.ones_like(pairs).triu(1).bool()]
        assert not improbable(apart, variance**2, rows * columns), f"{name}: seeds and sites, or heads"


def test_no_two_scores_share_a_random_number() -> None:
    """Heads, sites, seeds that differ in one bit, and rows of the batch: every pair of masks differs."""
    seed = ops.dropout.draw_seed(torch.device("cpu"))
    found = [
        dropout_kernel.keep_scores(seed ^ bit, site, torch.tensor([0, 208]), 3, 208, 0.5).flatten(2).flatten(0, 1)
        for bit in (0, 1, 2**31, 2**32, 2**61)
        for site in (0, 1, 2**31)
    ]
    bits = torch.cat(found).float() * 2 - 1
    agreement = (bits @ bits.T / bits.shape[1]).fill_diagonal_(0)
    assert agreement.abs().max() < 8 / math.sqrt(bits.shape[1])


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        (Dropout(0.1, None, 0), "dropout.seed must be .* got None"),  # type: ignore[arg-type]
        (Dropout(0.1, torch.tensor([1.0]), 0), "dropout.seed must be .* got torch.float32"),
        (Dropout(0.1, torch.tensor([1, 2]), 0), r"dropout.seed must be .* got torch.int64 \(2,\)"),
        (Dropout(0.1, torch.zeros(1, dtype=torch.int64, device="meta"), 0), "dropout.seed must be on cpu.* got meta"),
        (Dropout(1.0, torch.tensor([1]), 0), r"dropout.p must lie in \[0, 1\), got 1.0"),
        (Dropout(-0.1, torch.tensor([1]), 0), r"dropout.p must lie in \[0, 1\), got -0.1"),
    ],
)
@pytest.mark.parametrize("operation", ["bias_activation_dropout", "varlen_attention", "mlp"])
def test_a_bad_dropout_is_refused(dropout: Dropout, message: str, operation: str) -> None:
    arguments: dict[str, Any] = {
        "bias_activation_dropout": (torch.randn(4, 6),),
        "varlen_attention": (torch.randn(4, 3, 1, 8), torch.tensor([0, 4], dtype=torch.int32), 4),
        "mlp": (torch.randn(4, 6), torch.randn(8, 6), torch.randn(8), torch.randn(6, 8)),
    }
    with pytest.raises(ValueError, match=message):
        getattr(ops, operation)(*arguments[operation], dropout=dropout)
