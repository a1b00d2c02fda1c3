"""The kernels of varlen attention: compiled where there is a GPU, else interpreted."""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from helpers.closeness import assert_right
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import attention, attention_forward, attention_tiles, configs
from erniem_fast.ops import Dropout

pytestmark = pytest.mark.usefixtures("_poisoned")

CASES = {
    "16: four heads a tile": [16, 3, 0, 1, 9],
    "32: two heads a tile": [32, 20, 17, 1],
    "64: one tile": [64, 33, 50, 1, 0],
    "several tiles, mixed": [100, 33, 64, 0, 65, 1],
    "tiles of 128 rows": [200, 210],
    "tiles of 128 rows and a short sequence": [390, 20],
    "exact tiles of 64": [128, 64, 10, 10, 10],
    "one sequence": [77],
    "one token": [1],
}
QUICK = {
    ("16: four heads a tile", 0.0), ("32: two heads a tile", 0.3), ("64: one tile", 0.0), ("several tiles, mixed", 0.3),
    ("one token", 0.0),
}  # fmt: skip


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def offsets(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def check(
    device: torch.device,
    lengths: list[int],
    heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    p: float = 0.0,
    prefixes: list[int] | None = None,
    tail: int = 0,
) -> None:
    cu_seqlens, max_seqlen, total = offsets(lengths, device), max(lengths), sum(lengths) + tail
    prefix_lens = None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32, device=device)
    rest: Any = {"prefix_lens": prefix_lens, "dropout": Dropout(p, ops.draw_seed(device), 7) if p else None}

    def kernel(qkv: Tensor) -> Tensor:
        return ops.varlen_attention(qkv, cu_seqlens, max_seqlen, backend="triton", **rest)

    def oracle(qkv: Tensor) -> Tensor:
        out = attention.varlen_attention_oracle(qkv, cu_seqlens, **rest)[0]
        return torch.cat((out, out.new_zeros(tail, heads, head_dim)))

    qkv = torch.randn(total, 3, heads, head_dim, device=device).to(dtype)
    out, grad = assert_right(kernel, oracle, [qkv], (total, heads, head_dim))
    assert (out[sum(lengths) :] == 0).all()
    assert (grad[sum(lengths) :] == 0).all()


@pytest.mark.parametrize(
    ("name", "p"),
    [(name, p) if (name, p) in QUICK else slow(name, p) for name in CASES for p in (0.0, 0.3)],
)
def test_float32(name: str, p: float, device: torch.device) -> None:
    check(device, CASES[name], p=p)


@pytest.mark.parametrize(
    ("name", "dtype", "p"),
    [
        ("16: four heads a tile", torch.float16, 0.3),
        ("several tiles, mixed", torch.bfloat16, 0.0),
        slow("16: four heads a tile", torch.float16, 0.0),
        slow("16: four heads a tile", torch.bfloat16, 0.0),
        slow("16: four heads a tile", torch.bfloat16, 0.3),
        slow("several tiles, mixed", torch.float16, 0.0),
        slow("several tiles, mixed", torch.float16, 0.3),
        slow("several tiles, mixed", torch.bfloat16, 0.3),
    ],
    ids=str,
)
def test_16_bit(name: str, dtype: torch.dtype, p: float, device: torch.device) -> None:
    check(device, CASES[name], heads=3, head_dim=64, dtype=dtype, p=p)


@pytest.mark.parametrize("p", [slow(0.0), 0.3])
@pytest.mark.parametrize(
    ("lengths", "prefixes"),
    [
        ([16, 9, 4, 0], [7, 9, 0, 0]),
        slow([64, 30, 1], [40, 7, 1]),
        ([100, 65, 20, 70, 64], [70, 65, 5, 0, 64]),
        slow([200, 210], [70, 130]),
    ],
)
def test_prefix(lengths: list[int], prefixes: list[int], p: float, device: torch.device) -> None:
    check(device, lengths, p=p, prefixes=prefixes)


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize(
    ("lengths", "whole", "p"),
    [
        ([16, 9, 4, 0], False, 0.0),
        ([100, 65, 20, 64], False, 0.3),
        ([100, 65, 20, 64], True, 0.0),
        slow([30, 20, 1], False, 0.3),
        slow([64, 33], False, 0.0),
        slow([200, 210], False, 0.0),
        slow([200, 210], True, 0.3),
    ],
)
def test_the_forward_of_causal_attention(
    lengths: list[int], whole: bool, p: float, prefixed: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks of columns that need no mask in a loop of their own, and without."""
    monkeypatch.setattr(attention_forward, "WHOLE", 0 if whole else 10_000)
    cu_seqlens, total = offsets(lengths, device), sum(lengths) + 20
    prefix_lens = torch.tensor([length * 2 // 3 for length in lengths], dtype=torch.int32, device=device)
    rest: Any = {"prefix_lens": prefix_lens if prefixed else None, "causal": True}
    rest["dropout"] = Dropout(p, ops.draw_seed(device), 7) if p else None
    qkv = torch.randn(total, 3, 3, 16, device=device)
    expected = attention.varlen_attention_oracle(qkv.double(), cu_seqlens, **rest)[0].float()
    found = ops.varlen_attention(qkv, cu_seqlens, max(lengths), backend="triton", **rest)
    torch.testing.assert_close(found[: sum(lengths)], expected, rtol=1e-5, atol=1e-5)
    assert (found[sum(lengths) :] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_the_forward_of_a_long_sequence(causal: bool, device: torch.device) -> None:
    """The last of its 64 tiles."""
    length, rows, block = 8192, 128, configs.attention_tile(8192, 8192, 1)[0]
    qkv, cu_seqlens = torch.randn(length, 3, 1, 26, device=device), offsets([length], device)
    tiles = attention.attention_tiles(cu_seqlens, length, length, 0)
    tiles[tiles[:, 1] != length // block - 1] = torch.tensor([-1, 0, 0, 0], dtype=torch.int32, device=device)
    out, lse = attention.varlen_attention.forward(qkv, cu_seqlens, tiles, length, 0, None, causal, None)
    scores = qkv[-rows:, 0, 0].double() @ qkv[:, 1, 0].double().T / math.sqrt(26)
    if causal:
        later = torch.arange(length, device=device) > torch.arange(length - rows, length, device=device)[:, None]
        scores = scores.masked_fill(later, -torch.inf)
    expected = scores.softmax(-1) @ qkv[:, 2, 0].double()
    torch.testing.assert_close(out[-rows:, 0].double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lse[0, -rows:].double(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "prefixes", "p", "block_m"),
    [
        ([16, 9, 4, 0], [7, 9, 0, 0], 0.3, 0),
        slow([30, 32, 5], None, 0.0, 0),
        slow([64, 33, 1], [64, 20, 0], 0.3, 0),
        slow([64, 33, 1], None, 0.3, 0),
        ([100, 20, 70], [70, 5, 0], 0.0, 0),
        slow([130, 65, 64], None, 0.3, 0),
        slow([9, 3, 0], None, 0.0, 64),
        slow([200, 210], [200, 70], 0.3, 0),
        ([200, 210], None, 0.0, 0),
    ],
)
def test_causal_backward(
    lengths: list[int], prefixes: list[int] | None, p: float, block_m: int, device: torch.device
) -> None:
    cu_seqlens, longest, total, tail = offsets(lengths, device), max(lengths), sum(lengths) + 5, 5
    prefix_lens = None if prefixes is None else torch.tensor(prefixes, dtype=torch.int32, device=device)
    dropout = Dropout(p, ops.draw_seed(device), 7) if p else None
    qkv = torch.randn(total, 3, 2, 16, device=device)
    do = torch.randn(total, 2, 16, device=device)
    leaf = qkv[:-tail].double().requires_grad_()
    out, lse = attention.varlen_attention_oracle(leaf, cu_seqlens, prefix_lens, dropout, True)
    (expected,) = torch.autograd.grad(out, leaf, do[:-tail].double())
    results = F.pad(out.float(), (0, 0, 0, 0, 0, tail)).detach(), F.pad(lse.float(), (0, tail)).detach()
    tiles = attention.attention_tiles(cu_seqlens, longest, total, block_m)
    found = attention.varlen_attention_backward(
        do, qkv, *results, cu_seqlens, tiles, longest, block_m, prefix_lens, True, dropout
    )
    torch.testing.assert_close(found[:-tail].double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert (found[-tail:] == 0).all()


@pytest.mark.slow
def test_backward_of_a_long_sequence(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rows and columns of 8,192, causal: nothing after them adds to their gradients."""
    length, last = 8192, 50
    if device.type == "cpu":  # few large blocks are what the interpreter is quick at
        monkeypatch.setattr(attention_tiles, "attention_tile", lambda *_: (1024, True))
        monkeypatch.setattr(attention_tiles, "attention_config", lambda *_: configs.AttentionConfig(1024, 1024, 4))
    dropout = Dropout(0.1, ops.draw_seed(device), 2)
    qkv = torch.randn(length, 3, 1, 16, device=device)
    do, out = torch.randn(2, length, 1, 16, device=device)
    lse = torch.full((1, length), 10.0, device=device)
    leaf = qkv.double().requires_grad_()
    query, key, value = leaf[:, :, 0].unbind(1)
    columns = torch.arange(length, device=device)
    scores = (query[-last:] @ key.T / 4).masked_fill(columns > columns[-last:, None], -torch.inf)
    probabilities = scores.softmax(-1)
    # Rows of the mask count from the batch's first, but columns from the sequence's.
    keep = philox.keep_scores(dropout.seed.cpu(), dropout.site, length - 64, 0, 64, length, dropout.p)[-last:]
    probabilities = probabilities * keep.to(device) * philox.scale(dropout.p)
    rows = probabilities @ value
    (expected,) = torch.autograd.grad(rows, leaf, do[-last:, 0].double())
    out[-last:, 0], lse[0, -last:] = rows.detach().float(), scores.logsumexp(-1).detach().float()
    cu_seqlens = offsets([length], device)
    tiles = attention.attention_tiles(cu_seqlens, length, length, 0)
    found = attention.varlen_attention_backward(do, qkv, out, lse, cu_seqlens, tiles, length, 0, None, True, dropout)
    torch.testing.assert_close(found[-last:].double(), expected[-last:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_dim", [26, 80, slow(4), slow(64), slow(128)])
def test_head_dims(head_dim: int, device: torch.device) -> None:
    check(device, [70, 20], heads=1, head_dim=head_dim, p=0.2)


@pytest.mark.parametrize(
    ("lengths", "prefixes", "p"),
    [
        ([20, 9], None, 0.2),
        slow([40, 64, 17], None, 0.2),
        ([33, 100, 70, 1], [20, 40, 70, 0], 0.0),
        slow([20, 9], None, 0.0),
        slow([40, 64, 17], None, 0.0),
        slow([33, 100, 70, 1], [20, 40, 70, 0], 0.2),
        slow([300, 17], None, 0.0),
        slow([300, 17], None, 0.2),
    ],
)
def test_tiles_whose_rows_several_programs_share(
    lengths: list[int], prefixes: list[int] | None, p: float, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """float32 where the products of a warp leave room for few rows."""
    monkeypatch.setattr(configs, "architecture", lambda _: "sm_80")
    check(device, lengths, p=p, prefixes=prefixes, tail=40)


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_heads_that_fill_no_tile(heads: int, device: torch.device) -> None:
    check(device, [11, 16, 2], heads=heads, p=0.2)


@pytest.mark.parametrize("lengths", [[5, 2], [40, 70]])
def test_rows_of_no_sequence_are_zero(lengths: list[int], device: torch.device) -> None:
    check(device, lengths, p=0.2, tail=70)


@pytest.mark.slow
@settings(max_examples=12)
@given(data=st.data())
def test_any_lengths(device: torch.device, data: st.DataObject) -> None:
    longest = data.draw(st.sampled_from([16, 32, 64, 150]))
    lengths = data.draw(st.lists(st.integers(0, longest), min_size=1, max_size=5))
    prefixed = data.draw(st.booleans())
    prefixes = [data.draw(st.integers(0, length)) for length in lengths] if prefixed else None
    check(
        device,
        lengths,
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.sampled_from([8, 16, 24])),
        p=data.draw(st.sampled_from([0.0, 0.1, 0.5])),
        prefixes=prefixes,
        tail=data.draw(st.integers(0, 20)),
    )


@pytest.mark.parametrize(
    ("length", "tile"),
    [
        (9, 16),
        (70, 64),
        slow(30, 32),
        slow(64, 64),
        slow(120, 64),
        slow(385, 128),
    ],
)
def test_the_mask_is_philox_bit_for_bit(length: int, tile: int, device: torch.device) -> None:
    """Equal scores give each column the probability 1 / length: values, or gradients, of one 1 each show the mask."""
    heads, head_dim, p, start = 1 if length > 200 else 2, 128, 0.3, 3
    assert configs.attention_tile(length, start + length, 2)[0] == tile
    cu_seqlens = torch.tensor([0, start, start + length], dtype=torch.int32, device=device)
    seed = ops.draw_seed(device)
    for first in range(0, length, head_dim):
        shown = torch.eye(length, device=device)[:, first : first + head_dim]
        qkv = torch.zeros(start + length, 3, heads, head_dim, device=device, dtype=torch.bfloat16)
        qkv[start:, 2, :, : shown.shape[1]] = shown[:, None]
        qkv.requires_grad_()
        out = ops.varlen_attention(qkv, cu_seqlens, length, dropout=Dropout(p, seed, 11), backend="triton")
        columns = range(first, min(first + head_dim, length))
        (grad,) = torch.autograd.grad(out, qkv, torch.zeros_like(out).index_copy(
            0, torch.arange(start, start + length, device=device), qkv.detach()[start:, 2]
        ))  # fmt: skip
        for head in range(heads):
            expected = philox.keep_scores(seed.cpu(), 11, start, head, length, length, p).to(device)
            forward = out[start:, head, : len(columns)] * length / philox.scale(p)
            assert torch.equal(forward.round().bool(), expected[:, columns])
            backward = grad[start:, 2, head, : len(columns)] * length / philox.scale(p)
            assert torch.equal(backward.round().bool(), expected[columns].T)


def test_operands_need_not_be_contiguous(device: torch.device) -> None:
    lengths = [20, 70]
    wide = torch.randn(90, 3, 2, 40, device=device)
    arguments: Any = (offsets(lengths, device), 70)
    found = ops.varlen_attention(wide[..., ::2], *arguments, backend="triton")
    assert torch.equal(found, ops.varlen_attention(wide[..., ::2].contiguous(), *arguments, backend="triton"))
    strided = torch.stack((arguments[0], arguments[0] * 0), 1)[:, 0]
    assert torch.equal(found, ops.varlen_attention(wide[..., ::2], strided, 70, backend="triton"))
    leaf = wide[..., :20].detach().requires_grad_()
    ops.varlen_attention(leaf, *arguments, backend="triton").sum().backward()  # a gradient of stride 0
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_an_infinite_sequence_stays_by_itself(device: torch.device) -> None:
    for lengths in ([3, 5, 2], [3, 100, 70]):
        qkv = torch.randn(sum(lengths), 3, 2, 16, device=device)
        first, last = lengths[0], lengths[0] + lengths[1]
        qkv[last:] = torch.inf
        qkv.requires_grad_()
        out = ops.varlen_attention(qkv, offsets(lengths, device), max(lengths), backend="triton")
        assert out[:last].isfinite().all()
        (grad,) = torch.autograd.grad(out[first:last].sum(), qkv)
        assert grad[:last].isfinite().all()


@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
def test_a_longest_that_is_too_long_or_too_short(
    architecture: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "architecture", lambda _: architecture)
    lengths = [30, 70, 5]
    qkv = torch.randn(sum(lengths), 3, 2, 16, device=device, requires_grad=True)
    cu_seqlens = offsets(lengths, device)
    expected = attention.varlen_attention_oracle(qkv, cu_seqlens)[0]
    for longest in (70, 128, 500):
        found = ops.varlen_attention(qkv, cu_seqlens, longest, backend="triton")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # One that is too small gives wrong rows of the longer sequences, but neither NaN nor a neighbour's rows.
    found = ops.varlen_attention(qkv, cu_seqlens, 64, backend="triton")
    torch.testing.assert_close(found[:30], expected[:30], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[100:], expected[100:], rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(found.sum(), qkv)
    assert found.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "wrong"),
    [
        ("sm_90", [0, 40, 20, 90]),
        ("sm_80", [3, 3, 1000]),
        slow("sm_80", [0, 40, 20, 90]),
        slow("sm_90", [3, 3, 1000]),
        *(slow(name, wrong) for name in ("sm_90", "sm_80") for wrong in ([-5, 40, 90], [0, 200, 90], [5, 30, 60])),
    ],
)
def test_wrong_offsets_touch_no_other_memory(
    wrong: list[int], architecture: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operands and results lie between guards: NaN that would be read, sevens that would be overwritten."""
    monkeypatch.setattr(configs, "architecture", lambda _: architecture)
    guards = []
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def guarded(shape: Any, dtype: torch.dtype) -> Tensor:
        count = math.prod(shape)
        buffer = torch.full((count + 20_000,), 7.0, dtype=dtype, device=device)
        guards.append((buffer[:10_000], buffer[-10_000:]))
        return buffer[10_000:-10_000].view(shape)

    def new(like: Tensor, *size: Any, dtype: torch.dtype | None = None, **rest: Any) -> Tensor:
        if rest:  # the interpreter's own
            return new_empty(like, *size, dtype=dtype, **rest)
        shape = size[0] if isinstance(size[0], tuple | torch.Size) else size
        return guarded(shape, dtype or like.dtype)

    around = torch.full((190, 3, 2, 16), torch.nan, device=device)
    qkv = around[50:140].normal_().detach().requires_grad_()
    cu_seqlens = torch.tensor(wrong, dtype=torch.int32, device=device)
    grad = torch.randn(90, 2, 16, device=device)
    for longest in (16, 90):
        plan = ops.attention_plan(cu_seqlens, longest, 90, num_heads=2, head_dim=16, backend="triton")
        monkeypatch.setattr(Tensor, "new_empty", new)
        monkeypatch.setattr(torch, "empty_like", lambda like, **_: guarded(like.shape, like.dtype))
        out = ops.varlen_attention(qkv, cu_seqlens, longest, plan=plan, backend="triton")
        (found,) = torch.autograd.grad(out, qkv, grad)
        monkeypatch.setattr(Tensor, "new_empty", new_empty)
        monkeypatch.setattr(torch, "empty_like", empty_like)
        assert out.isfinite().all()
        assert found.isfinite().all()
    assert len(guards) >= 6
    assert all((guard == 7).all() for pair in guards for guard in pair)


@pytest.mark.slow
def test_many_sequences(device: torch.device) -> None:
    count = 100_000 if device.type == "cuda" else 150
    lengths = torch.randint(0, 4, (count,)).tolist()
    for longest in (3, 70):
        some = [*lengths, *([70] if longest == 70 else [])]
        cu_seqlens = offsets(some, device)
        qkv = torch.randn(sum(some), 3, 1, 16, device=device)
        found = ops.varlen_attention(qkv, cu_seqlens, longest, backend="triton")
        starts = cu_seqlens.tolist()
        for place in [*range(0, count, count // 50), len(some) - 1]:
            rows = slice(starts[place], starts[place + 1])
            if some[place]:
                expected = attention.varlen_attention_oracle(qkv[rows], offsets([some[place]], device))[0]
                torch.testing.assert_close(found[rows], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=30), tail=st.integers(0, 200))
def test_the_list_holds_every_tile_once_longest_first(device: torch.device, lengths: list[int], tail: int) -> None:
    total, longest = sum(lengths) + tail, max(lengths)
    tile, _ = configs.attention_tile(longest, total, len(lengths))
    tiles = attention.attention_tiles(offsets(lengths, device), longest, total, 0)
    if longest <= tile:
        return
    listed = [tuple(entry) for entry in tiles.tolist() if entry[0] >= 0]
    assert len(listed) <= attention_tiles.tile_slots(tile, total, len(lengths))
    assert (tiles[: len(listed), 0] >= 0).all()
    starts = [0, *accumulate(lengths)]
    entries = [(i, t, starts[i], n) for i, n in enumerate([*lengths, tail]) for t in range(-(-n // tile))]
    # By the number of tiles, then as they come; the rows of no sequence last.
    entries.sort(key=lambda entry: (entry[0] == len(lengths), -entry[3] // tile))
    assert listed == entries


def test_the_list_of_many_sequences(device: torch.device) -> None:
    """Counted by a kernel of its own; long sequences by classes of tiles."""
    lengths = [0, 9, 64, 65, 1, 130] * 350 + [700, 4000, 640, 8192]
    tiles = attention.attention_tiles(offsets(lengths, device), 8192, sum(lengths) + 100, configs.INVARIANT_TILE)
    listed = tiles[tiles[:, 0] >= 0].tolist()
    starts = [0, *accumulate(lengths)]
    wanted = {(i, t, starts[i], n) for i, n in enumerate([*lengths, 100]) for t in range(-(-n // 64))}
    assert len(listed) == len(wanted)
    assert {tuple(entry) for entry in listed} == wanted
    counts = [-(-entry[3] // 64) for entry in listed[:-2]]
    assert all(now >= 4 / 5 * later for now, later in pairwise(counts))
    assert [entry[0] for entry in listed[-2:]] == [len(lengths)] * 2


def test_a_plan_given_is_the_plan_made(device: torch.device) -> None:
    lengths = [100, 20, 70]
    cu_seqlens = offsets(lengths, device)
    qkv = torch.randn(190, 3, 2, 16, device=device)
    plan = ops.attention_plan(cu_seqlens, 100, 190, num_heads=2, head_dim=16, backend="triton")
    assert plan.tiles is not None
    found = ops.varlen_attention(qkv, cu_seqlens, 100, plan=plan, backend="triton")
    assert torch.equal(found, ops.varlen_attention(qkv, cu_seqlens, 100, backend="triton"))
    assert ops.attention_plan(cu_seqlens, 100, 190, num_heads=2, head_dim=16, backend="torch").tiles is None


@pytest.mark.parametrize("lengths", [[9, 3, 0], [64, 20], [100, 33, 70]], ids=str)
def test_a_forced_tile_size(lengths: list[int], device: torch.device) -> None:
    """The list has one size in every mode, and the result is right with either."""
    cu_seqlens, longest, total = offsets(lengths, device), max(lengths), sum(lengths) + 5
    qkv = torch.randn(total, 3, 2, 16, device=device, requires_grad=True)
    grad = torch.randn(total, 2, 16, device=device)
    grad[sum(lengths) :] = 0
    expected = attention.varlen_attention_oracle(qkv, cu_seqlens)[0]
    (wanted,) = torch.autograd.grad(expected, qkv, grad[: sum(lengths)])
    shapes = set()
    for block_m in (0, configs.INVARIANT_TILE):
        tiles = attention.attention_tiles(cu_seqlens, longest, total, block_m)
        shapes.add(tiles.shape)
        out, _ = attention.varlen_attention(qkv, cu_seqlens, tiles, longest, block_m, None, False, None)
        torch.testing.assert_close(out[: sum(lengths)], expected, rtol=1e-5, atol=1e-5)
        assert (out[sum(lengths) :] == 0).all()
        torch.testing.assert_close(torch.autograd.grad(out, qkv, grad)[0], wanted, rtol=1e-4, atol=1e-5)
        assert block_m == 0 or (tiles[:, 0] >= 0).sum() == sum(-(-n // block_m) for n in (*lengths, 5))
    assert shapes == {(total // 16 + len(lengths) + 1, 4)}


def test_runs_are_bitwise_equal(device: torch.device) -> None:
    lengths = [100, 20, 70, 3]
    qkv = torch.randn(193, 3, 2, 16, device=device, requires_grad=True)
    run: Callable[[], Tensor] = partial(
        ops.varlen_attention, qkv, offsets(lengths, device), 100, dropout=Dropout(0.3, ops.draw_seed(device), 0),
        backend="triton",
    )  # fmt: skip
    weight = torch.randn(193, 2, 16, device=device)
    outs = [run() for _ in range(20 if device.type == "cuda" else 2)]
    grads = [torch.autograd.grad(out, qkv, weight)[0] for out in outs]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def test_a_second_derivative_is_an_error(device: torch.device) -> None:
    qkv = torch.randn(5, 3, 1, 16, device=device, requires_grad=True)
    out = ops.varlen_attention(qkv, offsets([5], device), 5, backend="triton")
    (grad,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="varlen_attention_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck_of_the_oracle(p: float, prefixed: bool) -> None:
    cu_seqlens = offsets([4, 0, 3], torch.device("cpu"))
    prefix_lens = torch.tensor([2, 0, 1], dtype=torch.int32) if prefixed else None
    dropout = Dropout(p, ops.draw_seed(torch.device("cpu")), 3) if p else None
    qkv = torch.randn(7, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda qkv: attention.varlen_attention_oracle(qkv, cu_seqlens, prefix_lens, dropout), qkv
    )
