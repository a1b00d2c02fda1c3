"""A linear layer and the cross-entropy of its logits by torch, against both one after the other."""

import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.closeness import error
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from erniem_fast import ops

module: Any = importlib.import_module("erniem_fast.ops.linear_cross_entropy")
SMALL = 52_000
"""Bytes of logits: the chunks of a few rows."""


@pytest.fixture
def _in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET", SMALL)
    monkeypatch.setattr(module, "SLICE", 48)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(F.linear(x, weight, bias), targets.long(), reduction="none")
    return losses.to(torch.promote_types(losses.dtype, torch.float32)).sum()


def operands(
    rows: int, size: int, vocab: int, dtype: torch.dtype = torch.float64, ignored: float = 0.2, biased: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    x, weight = torch.randn(rows, size, dtype=dtype), torch.randn(vocab, size, dtype=dtype) / size**0.5
    bias = torch.randn(vocab, dtype=dtype) if biased else None
    targets = torch.where(torch.rand(rows) < ignored, -100, torch.randint(vocab, (rows,)))
    return x, weight, bias, targets


def run(compute: Callable[..., Tensor], given: tuple[Any, ...], scale: float = 1.0) -> list[Tensor]:
    """The loss and the gradients of its product with a scale."""
    leaves = [None if one is None else one.detach().requires_grad_() for one in given[:3]]
    loss = compute(*leaves, given[3])
    (loss * scale).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9), size=st.integers(1, 9), vocab=st.integers(1, 40), biased=st.booleans(),
    ignored=st.sampled_from([0.0, 0.4, 1.0]), budget=st.integers(1, 9000), words=st.integers(1, 50),
    scale=st.floats(-3, 3), dtype=st.sampled_from([torch.float64, torch.float32]), small=st.booleans(),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_whole_logits(
    rows: int, size: int, vocab: int, biased: bool, ignored: float, budget: int, words: int, scale: float,
    dtype: torch.dtype, small: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    given = operands(rows, size, vocab, dtype, ignored, biased)
    if small:
        given = *given[:3], given[3].int()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BUDGET", budget)
        patch.setattr(module, "SLICE", words)
        patch.setattr(module, "CACHED", budget)
        found = run(ops.linear_cross_entropy, given, scale)
    double = *(None if one is None else one.double() for one in given[:3]), given[3]
    for one, two in zip(found, run(plain, double, scale), strict=True):
        assert one.dtype == dtype
        most = 1e-10 if dtype == torch.float64 else 1e-5
        assert error(one, two) <= most * max(two.abs().max().item() if two.numel() else 0.0, 1.0)


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_counted(rows: int) -> None:
    found = run(ops.linear_cross_entropy, operands(rows, 4, 7, ignored=1.0))
    assert found[0] == 0
    assert all((grad == 0).all() for grad in found[1:])
    assert [grad.shape for grad in found[1:]] == [(rows, 4), (7, 4), (7,)]


@pytest.mark.usefixtures("_in_pieces")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(value: float) -> None:
    given = operands(40, 5, 100)
    given[2][3] = value  # type: ignore[index]
    found, expected = run(ops.linear_cross_entropy, given), run(plain, given)
    assert found[0].isnan() == expected[0].isnan() == (value != -math.inf)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), two.isnan())
        torch.testing.assert_close(one, two, equal_nan=True, rtol=1e-10, atol=1e-10)


# Precision


@pytest.mark.usefixtures("_in_pieces", "_poisoned")
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_at_most_twice_as_wrong_as_whole_logits(dtype: torch.dtype, autocast: bool) -> None:
    """Mean loss; in float16 with the loss scaled, as GradScaler does it."""
    rows, vocab = 150, 1000  # 6 chunks, as 16,384 tokens make of 250,002 words; a float32 gradient exceeds the budget
    given = operands(rows, 32, vocab, torch.float32 if autocast else dtype)
    scale = (2.0**16 if dtype == torch.float16 and autocast else 1.0) / rows

    def by(compute: Callable[..., Tensor]) -> list[Tensor]:
        def under_autocast(*given: Any) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=autocast):
                return compute(*given)

        return run(under_autocast, given, scale)

    exact = run(plain, (*(one.double() for one in given[:3]), given[3]), scale)  # type: ignore[union-attr]
    found = by(ops.linear_cross_entropy)
    assert [one.dtype for one in found] == [torch.float32, *(one.dtype for one in given[:3])]  # type: ignore[union-attr]
    low = by(plain)
    # Of a single number whole logits may be right by chance.
    assert error(found[0], exact[0]) <= 2 * error(low[0], exact[0]) + torch.finfo(dtype).eps / 2 * exact[0]
    for one, two, right in zip(found[1:], low[1:], exact[1:], strict=True):
        assert (one - right).norm() <= 2 * (two - right).norm()


def test_small_gradients_do_not_vanish_in_float16() -> None:
    """Words of probability 1e-7 keep theirs, which float16 alone would round to two values."""
    x, weight, bias, targets = operands(64, 32, 2000, torch.float32, ignored=0.0)
    assert bias is not None
    bias[1000:] -= 9
    targets %= 1000
    exact = run(plain, (x.double(), weight.double(), bias.double(), targets), 2.0**16 / 64)[2][1000:]
    with torch.autocast("cpu", torch.float16):
        found = run(ops.linear_cross_entropy, (x, weight, bias, targets), 2.0**16 / 64)[2][1000:]
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert error(found, exact) < 0.02 * exact.abs().max()


@pytest.mark.usefixtures("_poisoned")
def test_large_operands_do_not_overflow_in_float16() -> None:
    """Every row has one target and a wrong guess: its sum is the largest there can be."""
    x, weight = torch.full((500, 4), 60.0), torch.zeros(50, 4)
    targets = torch.full((500,), 7)
    weight[3] = 1
    exact = run(plain, (x.double(), weight.double(), None, targets))
    with torch.autocast("cpu", torch.float16):
        found = run(ops.linear_cross_entropy, (x, weight, None, targets))
    for one, right in zip(found, exact, strict=True):
        assert error(one, right) <= 1e-3 * right.abs().max()


# What is computed


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the gradients that products are added to."""
    shapes: list[tuple[int, ...]] = []
    add = module._add_product
    monkeypatch.setattr(module, "_add_product", lambda out, *rest: shapes.append(tuple(out.shape)) or add(out, *rest))
    return shapes


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, targets = operands(5, 4, 7)
    shapes = spied(monkeypatch)
    for leaf, expected in ((x, (5, 4)), (weight, (7, 4))):
        leaf.requires_grad_()
        (found,) = torch.autograd.grad(ops.linear_cross_entropy(x, weight, bias, targets), leaf)
        (wanted,) = torch.autograd.grad(plain(x, weight, bias, targets), leaf)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        assert shapes == [expected]
        shapes.clear()
        with torch.no_grad():
            loss = ops.linear_cross_entropy(x, weight, bias, targets)
        with torch.inference_mode():
            assert torch.equal(ops.linear_cross_entropy(x, weight, bias, targets), loss)
        torch.testing.assert_close(loss, plain(x, weight, bias, targets).detach())
        leaf.requires_grad_(False)
    ops.linear_cross_entropy(x, weight, bias, targets)
    assert shapes == []


def test_a_second_backward_gives_the_same() -> None:
    given = operands(6, 4, 9)
    leaves = [one.requires_grad_() for one in given[:3]]  # type: ignore[union-attr]
    loss = ops.linear_cross_entropy(*leaves, given[3])
    first = [grad.clone() for grad in torch.autograd.grad(loss * 3, leaves, retain_graph=True)]
    for scale in (0.0, -2.0):
        for one, two in zip(torch.autograd.grad(loss * scale, leaves, retain_graph=True), first, strict=True):
            torch.testing.assert_close(one, two * scale / 3)
    with pytest.raises(RuntimeError, match="create_graph must be False for linear_cross_entropy"):
        torch.autograd.grad(loss, leaves, create_graph=True)


def test_gradients_accumulate() -> None:
    given = operands(6, 4, 9)
    weight = given[1].requires_grad_()
    for _ in range(2):
        ops.linear_cross_entropy(given[0], weight, *given[2:]).backward()
    (once,) = torch.autograd.grad(plain(given[0], weight, *given[2:]), weight)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_transforms_of_torch_func() -> None:
    given = operands(6, 4, 9)
    found = torch.func.grad(ops.linear_cross_entropy, argnums=(0, 1, 2))(*given)
    for one, two in zip(found, run(plain, given)[1:], strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_one_compiled_graph_serves_all_sizes() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(ops.linear_cross_entropy, fullgraph=True, dynamic=True, backend=counter)
    for rows in (5, 8, 13):
        given = operands(rows, 4, 70)
        for one, two in zip(run(fast, given, 0.3), run(ops.linear_cross_entropy, given, 0.3), strict=True):
            assert torch.equal(one, two)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "needs", [[True] * 3, *(pytest.param(some, marks=pytest.mark.slow) for some in ([False, True, False], [False] * 3))]
)
def test_opcheck(needs: list[bool]) -> None:
    x, weight, bias, targets = operands(5, 4, 70)
    given = [one.requires_grad_(need) for one, need in zip((x, weight, bias), needs, strict=True)]  # type: ignore[union-attr]
    torch.library.opcheck(module._linear_cross_entropy, (*given, targets, torch.float64, needs, False))


def test_targets_must_be_integers() -> None:
    x, weight, bias, targets = operands(5, 4, 7)
    with pytest.raises(TypeError, match=r"targets must be int64 or int32, got torch\.float32"):
        ops.linear_cross_entropy(x, weight, bias, targets.float())


# Memory


def peak_bytes(compute: Callable[[], object]) -> int:
    """Most bytes that torch's allocations in a call hold at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = compute()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del kept
    return peak


@pytest.mark.parametrize("dtype", [pytest.param(None, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_logits_and_cast_tables_are_never_whole(dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, rows, vocab, size = 2**20, 300, 8000, 128
    monkeypatch.setattr(module, "BUDGET", budget)
    monkeypatch.setattr(module, "SLICE", 256)
    monkeypatch.setattr(module, "CACHED", 2**12)
    given = operands(rows, size, vocab, torch.float32)
    grads = sum(one.nbytes for one in given[:3])  # type: ignore[union-attr]
    itemsize = 4 if dtype is None else 2
    peaks = []
    for compute in (plain, ops.linear_cross_entropy):

        def step(compute: Any = compute) -> object:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                return run(compute, given)

        peaks.append(peak_bytes(step) - grads)
    assert peaks[0] > rows * vocab * itemsize  # the count is one
    assert peaks[1] < 1.4 * budget < vocab * size * itemsize


REAL_SIZE = """
import sys, threading, time, torch
from erniem_fast import ops

torch.set_num_threads(1)
rows, vocab, size = round(16_384 * 0.15), 250_002, 768
dtype = getattr(torch, sys.argv[1])
table, bias = torch.nn.Parameter(torch.empty(vocab, size).uniform_(-0.04, 0.04)), torch.nn.Parameter(torch.zeros(vocab))
x, targets = torch.randn(rows, size, requires_grad=True), torch.randint(vocab, (rows,))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def step(*given):
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = ops.linear_cross_entropy(*given)
    (loss / rows).backward()

step(x[:9].detach(), table[:900].detach().requires_grad_(), bias[:900].detach(), targets[:9] % 900)  # libraries load
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, resident())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
step(x, table, bias, targets)
done.set()
thread.join()
print((peak - before - sum(one.grad.nbytes for one in (x, table, bias))) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_size_takes_300_mb(dtype: str) -> None:
    """Resident memory of a process: 2,458 rows, hidden size 768, 250,002 words."""
    command = [sys.executable, "-c", REAL_SIZE, dtype]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{dtype}: {done.stdout.strip()} MB beyond the table and the gradients")
    assert 100 < float(done.stdout) <= 300
