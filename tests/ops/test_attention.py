"""Varlen attention by torch, against plain formulas in float64."""

from typing import Any

import pytest
import torch
from helpers import closeness
from helpers.formulas import offsets, plain_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erniem_fast import ops
from erniem_fast.ops import Dropout, attention_cpu, attention_torch

CPU = torch.device("cpu")
lengths_of_batches = st.lists(st.integers(0, 17), min_size=1, max_size=9)
drawn = settings(max_examples=15)


@pytest.fixture(params=["equal lengths", "padded groups"])
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to form batched products: a CPU's, and the one of devices whose values can't be read."""
    if request.param == "padded groups":

        def padded(cu_seqlens: Tensor, max_seqlen: int, num_heads: int, total: int) -> list[Any]:
            return list(attention_torch.padded_groups(cu_seqlens, max_seqlen, num_heads, total))

        monkeypatch.setattr(attention_torch, "group_sequences", padded)
        monkeypatch.setattr(attention_torch, "PADDED_SCORES_PER_CHUNK", 1000)  # several chunks


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_forward_and_backward(p: float, prefixed: bool, causal: bool) -> None:
    @drawn
    @given(lengths=lengths_of_batches, data=st.data())
    def check(lengths: list[int], data: st.DataObject) -> None:
        qkv = torch.randn(sum(lengths), 3, 2, 5, dtype=torch.float64, requires_grad=True)
        prefixes = [data.draw(st.integers(0, length)) for length in lengths] if prefixed else None
        dropout = Dropout(p, ops.draw_seed(CPU), 7) if p else None
        found = ops.varlen_attention(
            qkv,
            offsets(lengths),
            max(lengths) + 2,
            prefix_lens=None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32),
            causal=causal,
            dropout=dropout,
        )
        expected = plain_attention(qkv, lengths, prefixes, dropout, causal)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        weight = torch.randn_like(found)
        (gradient,) = torch.autograd.grad((found * weight).sum(), qkv)
        (wanted,) = torch.autograd.grad((expected * weight).sum(), qkv)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)
        with torch.no_grad():
            eager = ops.varlen_attention(
                qkv, offsets(lengths), max(lengths), dropout=dropout, causal=causal,
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
    monkeypatch.setattr(attention_torch, "SCORES_PER_CHUNK", 3 * 2 * 36)
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


@pytest.mark.usefixtures("grouping")
def test_a_plan_is_shared() -> None:
    """Whoever makes it, the result is the same bits; a plan of another batch is refused."""
    lengths = [5, 0, 9, 5, 1]
    qkv = torch.randn(20, 3, 2, 4, requires_grad=True)
    plan = ops.attention_plan(offsets(lengths), 9, 20, num_heads=2, head_dim=4)
    one, two = (ops.varlen_attention(qkv, offsets(lengths), 9, plan=given) for given in (plan, None))
    assert torch.equal(one, two)
    weight = torch.randn_like(one)
    grads = [torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (one, two)]
    assert torch.equal(*grads)
    for changed in ((qkv[:19], [5, 0, 9, 5], 9), (qkv, [5, 9, 5, 1], 9), (qkv, lengths, 12)):
        with pytest.raises(ValueError, match="plan must be attention_plan's of the same batch"):
            ops.varlen_attention(changed[0], offsets(changed[1]), changed[2], plan=plan)


@pytest.mark.usefixtures("grouping")
@pytest.mark.parametrize("dropout", [None, Dropout(0.3, torch.tensor([5]), 1)])
def test_second_derivatives(dropout: Dropout | None) -> None:
    """Of the torch backend; `autograd.grad` would leave a part out in silence that can't be differentiated again."""
    lengths = [3, 0, 4, 3]
    qkv = torch.randn(10, 3, 1, 4, dtype=torch.float64, requires_grad=True)

    def attend(qkv: Tensor) -> Tensor:
        return ops.varlen_attention(
            qkv, offsets(lengths), 4, prefix_lens=torch.tensor([2, 0, 1, 0]).int(), causal=True, dropout=dropout
        )

    assert torch.autograd.gradgradcheck(attend, qkv, fast_mode=True)


def test_a_second_derivative_of_the_compiled_operation_is_an_error() -> None:
    qkv = torch.randn(7, 3, 1, 4, requires_grad=True)
    out = attention_torch._attention_op(qkv, offsets([7]), 7, None, False, 0.0, None, 0)
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), qkv)


@pytest.mark.parametrize(
    ("cu_seqlens", "max_seqlen", "message"),
    [
        ([0, 5, 3, 7], 5, "never fall .* smallest step -2"),
        ([1, 5, 7], 5, "must start at 0, .* got first 1"),
        ([0, 5, 8], 5, r"end at 7 \(total_tokens\) or before, .* last 8"),
        ([0, 5, 7], 4, "max_seqlen must be at least 5, the longest sequence, got 4"),
    ],
)
def test_offsets_that_cannot_be_right_are_refused(cu_seqlens: list[int], max_seqlen: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.varlen_attention(torch.randn(7, 3, 1, 4), torch.tensor(cu_seqlens, dtype=torch.int32), max_seqlen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_inference_by_sequences(dtype: torch.dtype) -> None:
    """Short ones of one length together, the others alone, from either layout of the projections."""

    @settings(max_examples=8)
    @given(
        lengths=st.lists(st.sampled_from([0, 1, 3, 3, 3, 16, 17, 40, 64, 65, 90]), min_size=1, max_size=14),
        split=st.booleans(),
    )
    def check(lengths: list[int], split: bool) -> None:
        total = sum(lengths)
        qkv = torch.randn(3, total, 2, 5).to(dtype).transpose(0, 1)
        qkv = qkv if split else qkv.contiguous()
        with torch.inference_mode():
            assert attention_cpu.takes(qkv)
            found = ops.varlen_attention(qkv, offsets(lengths), max(lengths))
        expected = plain_attention(qkv.double(), lengths)
        assert found.shape == expected.shape
        assert found.dtype == dtype
        rounding = (
            1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps / 2 * max([1.0, *qkv.abs().flatten().tolist()])
        )
        plain = plain_attention(qkv, lengths)
        assert closeness.error(found, expected) <= closeness.TIMES * closeness.error(plain, expected) + rounding

    check()


def test_rows_behind_the_last_sequence_are_zero() -> None:
    qkv = torch.randn(9, 3, 2, 5)
    with torch.inference_mode():
        found = ops.varlen_attention(qkv, offsets([4, 2]), 4)
    assert (found[6:] == 0).all()
    torch.testing.assert_close(found[:6], plain_attention(qkv[:6], [4, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [torch.inf, torch.nan, -torch.inf])
def test_an_infinite_sequence_stays_by_itself_in_inference(dtype: torch.dtype, value: float) -> None:
    """Though others are computed by the same call."""
    lengths = [3, 90, 20, 3, 3, 85]
    qkv = torch.randn(sum(lengths), 3, 2, 4).to(dtype)
    with torch.inference_mode():
        expected = ops.varlen_attention(qkv, offsets(lengths), 90)
    for rows in (slice(3, 93), slice(93, 113)):
        poisoned = qkv.clone()
        poisoned[rows] = value
        with torch.inference_mode():
            found = ops.varlen_attention(poisoned, offsets(lengths), 90)
        others = [row for row in range(sum(lengths)) if not rows.start <= row < rows.stop]
        assert found[others].isfinite().all()
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(found[others], expected[others], atol=rounding, rtol=rounding)
