"""The kernel that replaces logits by their gradients, and the operation on it."""

import importlib
import math

import pytest
import torch
from helpers.closeness import FLOAT32, assert_right, error
from helpers.row_cases import dtypes
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import configs, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("_poisoned")
WIDE = 5000
"""Columns of which a program takes several blocks."""


def rows_of_logits(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Logits in a buffer whose rows are longer, and end in NaN."""
    buffer = torch.full((rows, -(-vocab // 64) * 64), torch.nan, device=device, dtype=dtype)
    buffer[:, :vocab] = 3 * torch.randn(rows, vocab, device=device)
    return buffer[:, :vocab]


@dtypes
@pytest.mark.parametrize(
    ("vocab", "block_n"),
    [(100, 32), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (64, 0), (1000, 0), (WIDE, 0)))],
)
def test_losses_and_gradients(
    vocab: int, block_n: int, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block_n:
        config = configs.RowConfig(1, 1, block_n=block_n)
        monkeypatch.setattr(linear_cross_entropy, "row_config", lambda *_: config)
    logits, targets = rows_of_logits(5, vocab, dtype, device), torch.randint(vocab, (5,), device=device)
    targets[3] = -100
    logits[4, 0] = -math.inf if vocab > 1 else 2
    targets[4] = vocab - 1
    expected, grad = linear_cross_entropy.compare_oracle(logits.double(), targets, 4.0)
    losses, before = torch.empty(5, device=device), logits.clone()
    linear_cross_entropy.compare(logits, targets, losses, None)
    assert torch.equal(logits, before)
    alone = losses.clone()
    linear_cross_entropy.compare(logits, targets, losses, 4.0)
    assert torch.equal(alone, losses)
    assert losses[3] == 0
    assert (logits[3] == 0).all()
    assert error(losses, expected) <= FLOAT32 * expected.abs().max().clamp(min=1)
    most = FLOAT32 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert error(logits, grad) <= 4 * most * 1.01


def test_logits_that_are_not_finite(device: torch.device) -> None:
    for value in (math.nan, math.inf):
        logits = rows_of_logits(2, 100, torch.float32, device)
        logits[1, 70] = value
        losses = torch.empty(2, device=device)
        linear_cross_entropy.compare(logits, torch.tensor([70, 2], device=device), losses, 1.0)
        assert losses.isnan().tolist() == logits.isnan().any(1).tolist() == [False, True]


@dtypes
@pytest.mark.parametrize("biased", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_operation(biased: bool, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one of fewer rows."""
    module = importlib.import_module("erniem_fast.ops.linear_cross_entropy")
    monkeypatch.setattr(module, "BUDGET", 5 * 192 * dtype.itemsize)
    monkeypatch.setattr(module, "SLICE", 64)
    vocab = 150
    targets = torch.randint(vocab, (13,), device=device)
    targets[5] = -100

    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.linear_cross_entropy(x, weight, bias, targets, backend="triton")

    def oracle(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = torch.nn.functional.linear(x, weight, bias)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    inputs = [torch.randn(*shape, device=device).to(dtype) for shape in ((13, 24), (vocab, 24), (vocab,))]
    inputs = inputs if biased else inputs[:2]
    # A rounded logit changes a row's loss by at most its rounding, through the sum and as the target's: twice that.
    logits = torch.nn.functional.linear(*(one.double() for one in inputs))[targets != -100]
    rounding = torch.finfo(dtype).eps / 2 * logits.abs().amax(1).sum().item()
    assert_right(kernel, oracle, inputs, (), bound=2 * rounding)


def test_the_loss_alone(device: torch.device) -> None:
    x, weight, targets = torch.randn(7, 24), torch.randn(150, 24), torch.randint(150, (7,))
    given = [one.to(device) for one in (x, weight)]
    found = ops.linear_cross_entropy(*given, None, targets.to(device), backend="triton")
    torch.testing.assert_close(found, ops.linear_cross_entropy(*given, None, targets.to(device), backend="torch"))


@pytest.mark.slow
def test_runs_are_bitwise_equal(device: torch.device) -> None:
    x, weight = (torch.randn(*shape, device=device, requires_grad=True) for shape in ((9, 24), (150, 24)))
    targets = torch.randint(150, (9,), device=device)

    def run() -> list[Tensor]:
        loss = ops.linear_cross_entropy(x, weight, None, targets, backend="triton")
        return [loss, *torch.autograd.grad(loss, (x, weight))]

    first = run()
    assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))
