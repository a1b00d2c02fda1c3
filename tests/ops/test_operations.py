"""The four fused operations against plain formulas in float64, and dropout against an independent Philox."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast import ops, torch_ops
from erniem_fast.kernels import dropout as dropout_kernel

CPU = torch.device("cpu")
lengths_of_batches = st.lists(st.integers(0, 17), min_size=1, max_size=9)
drawn = settings(max_examples=30, deadline=None)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def plain_attention(
    qkv: Tensor,
    lengths: list[int],
    prefix_lens: list[int] | None = None,
    p: float = 0.0,
    seed: Any = None,
    site: int = 0,
) -> Tensor:
    outputs = []
    for index, (start, end) in enumerate(pairwise(offsets(lengths).tolist())):
        length = end - start
        query, key, value = qkv[start:end].permute(1, 2, 0, 3)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        if prefix_lens is not None:
            for row in range(min(prefix_lens[index], length)):
                scores[:, row, prefix_lens[index] :] = -torch.inf
        probabilities = scores.softmax(-1)
        if p:
            keep = [philox.keep_scores(seed, site, start, head, length, length, p) for head in range(qkv.shape[2])]
            probabilities = probabilities * torch.stack(keep) * philox.scale(p)
        outputs.append((probabilities @ value).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture(params=["equal lengths", "padded groups"])
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to form batched products: a CPU's, and the one of devices whose values can't be read."""
    if request.param == "padded groups":

        def padded(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total: int) -> Iterator[Any]:
            return torch_ops._padded_groups(cu_seqlens, max_seqlen, num_heads, total)

        monkeypatch.setattr(torch_ops, "_groups", padded)
        monkeypatch.setattr(torch_ops, "PADDED_SCORES_PER_CHUNK", 1000)  # several chunks


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("prefixed", [False, True])
def test_attention_forward_and_backward(p: float, prefixed: bool) -> None:
    @drawn
    @given(lengths=lengths_of_batches, data=st.data())
    def check(lengths: list[int], data: st.DataObject) -> None:
        qkv = torch.randn(sum(lengths), 3, 2, 5, dtype=torch.float64, requires_grad=True)
        prefixes = [data.draw(st.integers(0, length)) for length in lengths] if prefixed else None
        seed = ops.draw_seed(CPU)
        found = ops.varlen_attention(
            qkv,
            offsets(lengths),
            max(lengths) + 2,
            prefix_lens=None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32),
            dropout_p=p,
            seed=seed,
            site=7,
        )
        expected = plain_attention(qkv, lengths, prefixes, p, seed, 7)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        weight = torch.randn_like(found)
        (gradient,) = torch.autograd.grad((found * weight).sum(), qkv)
        (wanted,) = torch.autograd.grad((expected * weight).sum(), qkv)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
        with torch.no_grad():
            eager = ops.varlen_attention(
                qkv, offsets(lengths), max(lengths), dropout_p=p, seed=seed, site=7,
                prefix_lens=None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32),
            )  # fmt: skip
        torch.testing.assert_close(eager, found.detach(), rtol=0, atol=1e-12)

    check()


@pytest.mark.usefixtures("grouping")
def test_an_infinite_sequence_stays_by_itself() -> None:
    lengths = [3, 5, 2]
    qkv = torch.randn(10, 3, 2, 4)
    qkv[8:, 2] = torch.inf
    found = ops.varlen_attention(qkv, offsets(lengths), 5)
    torch.testing.assert_close(found[:8], plain_attention(qkv[:8], lengths[:2]))


def test_attention_under_autocast_keeps_its_operand_s_dtype() -> None:
    qkv = torch.randn(12, 3, 2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.varlen_attention(qkv, offsets([6, 6]), 6)
        out.sum().backward()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, plain_attention(qkv, [6, 6]), rtol=0, atol=0.05)


def test_attention_splits_large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [6] * 11 + [3]
    qkv = torch.randn(sum(lengths), 3, 2, 4, dtype=torch.float64)
    monkeypatch.setattr(torch_ops, "SCORES_PER_CHUNK", 3 * 2 * 36)
    found = ops.varlen_attention(qkv, offsets(lengths), 6)
    torch.testing.assert_close(found, plain_attention(qkv, lengths), rtol=0, atol=1e-12)


def test_many_empty_and_short_sequences() -> None:
    lengths = torch.randint(0, 3, (20_000,)).tolist()
    qkv = torch.randn(sum(lengths), 3, 1, 4)
    found = ops.varlen_attention(qkv, offsets(lengths), 2)
    some = [i for i in range(2000) if lengths[i]]
    starts = offsets(lengths).tolist()
    for i in some[::97]:
        rows = slice(starts[i], starts[i + 1])
        torch.testing.assert_close(found[rows], plain_attention(qkv[rows], [lengths[i]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_row_operations_forward_and_backward(p: float) -> None:
    seed, rows, size = ops.draw_seed(CPU), 9, 21

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def drop(x: Tensor, site: int) -> Tensor:
        return x * philox.keep_rows(seed, site, 0, rows, size, p) * philox.scale(p) if p else x

    x, residual, weight, bias, linear_bias = leaf(rows, size), leaf(rows, size), leaf(size), leaf(size), leaf(size)
    ids, places = torch.randint(0, 13, (rows,)), torch.randint(0, 8, (rows,))
    words, positions = leaf(13, size), leaf(8, size)
    norm = {"dropout_p": p, "seed": seed}
    cases: list[tuple[Tensor, Tensor, list[Tensor]]] = [
        (
            ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-5, linear_bias=linear_bias, site=1, **norm),
            F.layer_norm(residual + drop(x + linear_bias, 1), (size,), weight, bias, 1e-5),
            [x, residual, weight, bias, linear_bias],
        ),
        (
            ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-3, site=2, **norm),
            F.layer_norm(residual + drop(x, 2), (size,), weight, bias, 1e-3),
            [x, residual, weight, bias],
        ),
        (
            ops.bias_gelu_dropout(x, linear_bias, site=3, **norm),
            drop((x + linear_bias) * (1 + torch.erf((x + linear_bias) / 2**0.5)) / 2, 3),
            [x, linear_bias],
        ),
        (ops.bias_gelu_dropout(x, site=4, **norm), drop(F.gelu(x), 4), [x]),
        (
            ops.embedding_layer_norm(ids, places, words, positions, weight, bias, 1e-5, site=5, **norm),
            drop(F.layer_norm(words[ids] + positions[places], (size,), weight, bias, 1e-5), 5),
            [words, positions, weight, bias],
        ),
        (
            ops.embedding_layer_norm(
                None, places, words, positions, weight, bias, 1e-5, inputs_embeds=x, site=6, **norm
            ),
            drop(F.layer_norm(x + positions[places], (size,), weight, bias, 1e-5), 6),
            [x, positions, weight, bias],
        ),
    ]
    for found, expected, inputs in cases:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        grad = torch.randn_like(found)
        for one, two in zip(
            torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_padding_id_gets_no_gradient() -> None:
    words, positions = torch.randn(7, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    weight, bias = torch.randn(4), torch.randn(4)
    ids = torch.tensor([1, 3, 1, 4])
    out = ops.embedding_layer_norm(
        ids, ids, words, positions, weight, bias, 1e-5, padding_idx=1, position_padding_idx=3
    )
    (out * torch.randn_like(out)).sum().backward()
    for table, padding, other in ((words, 1, 3), (positions, 3, 1)):
        assert table.grad is not None
        assert (table.grad[padding] == 0).all()
        assert (table.grad[other] != 0).any()


@drawn
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


def test_dropout_probability_near_one_keeps_finite_values() -> None:
    x = torch.rand(64, 64) + 1
    out = ops.bias_gelu_dropout(x, dropout_p=0.999999, seed=ops.draw_seed(CPU))
    assert out.isfinite().all()


def good_arguments() -> dict[str, dict[str, Any]]:
    rows, vector = torch.randn(4, 6), torch.randn(6)
    return {
        "varlen_attention": {"qkv": torch.randn(4, 3, 2, 5), "cu_seqlens": offsets([3, 1]), "max_seqlen": 3},
        "dropout_add_layer_norm": {"x": rows, "residual": rows, "weight": vector, "bias": vector, "eps": 1e-5},
        "bias_gelu_dropout": {"x": rows, "bias": vector},
        "mlp": {"x": rows, "weight1": torch.randn(8, 6), "bias1": torch.randn(8), "weight2": torch.randn(6, 8)},
        "embedding_layer_norm": {
            "input_ids": torch.arange(4), "position_ids": torch.arange(4), "word_weight": torch.randn(9, 6),
            "position_weight": torch.randn(9, 6), "weight": vector, "bias": vector, "eps": 1e-5,
        },
    }  # fmt: skip


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("varlen_attention", {"qkv": torch.randn(4, 2, 2, 5)}, r"qkv must have shape .* got \(4, 2, 2, 5\)"),
    ("varlen_attention", {"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must be int32 .* got torch.int64"),
    (
        "varlen_attention",
        {"prefix_lens": torch.tensor([1])},
        r"prefix_lens must be int32 of shape \(2,\) .* got torch.int64 \(1,\)",
    ),
    ("varlen_attention", {"max_seqlen": torch.tensor(3)}, "max_seqlen must be an int, got Tensor"),
    ("varlen_attention", {"tiles": torch.zeros(1, 2)}, r"tiles must be int32 of shape \(3, 2\), .* got torch.float32"),
    ("varlen_attention", {"dropout_p": 0.1}, "seed must be .* got None"),
    ("varlen_attention", {"dropout_p": 1.0}, r"dropout_p must lie in \[0, 1\), got 1.0"),
    ("varlen_attention", {"backend": "cuda"}, "backend must be one of .* got 'cuda'"),
    ("varlen_attention", {"qkv": torch.empty(4, 3, 2, 5, device="meta")}, "cu_seqlens must be on meta.*, got cpu"),
    ("dropout_add_layer_norm", {"residual": torch.randn(4, 5)}, r"residual must have shape \(4, 6\)"),
    ("dropout_add_layer_norm", {"weight": torch.randn(5)}, r"weight must have shape \(6,\), got \(5,\)"),
    ("bias_gelu_dropout", {"bias": torch.randn(1)}, r"bias must have shape \(6,\)"),
    ("bias_gelu_dropout", {"x": torch.randn(4)}, "x must have shape"),
    ("mlp", {"weight1": torch.randn(5, 6)}, r"weight1 must fit x \(4, 6\) and bias1 \(8,\), got \(5, 6\)"),
    ("mlp", {"weight2": torch.randn(6, 5)}, r"weight2 must fit"),
    ("embedding_layer_norm", {"word_weight": torch.randn(9, 5)}, r"word_weight must have 6 columns .* got \(9, 5\)"),
    ("embedding_layer_norm", {"input_ids": None}, "exactly one of"),
    ("embedding_layer_norm", {"inputs_embeds": torch.randn(4, 6)}, "exactly one of"),
    ("embedding_layer_norm", {"position_ids": torch.arange(3)}, r"got \(4,\) and position_ids \(3,\)"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_arguments(name: str, change: dict[str, Any], message: str) -> None:
    operation: Callable[..., Tensor] = getattr(ops, name)
    arguments = good_arguments()[name]
    assert operation(**arguments).isfinite().all()
    with pytest.raises(ValueError, match=message):
        operation(**(arguments | change))
