"""The kernels of the embedding sum, layer-norm and dropout."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from helpers.closeness import assert_right
from helpers.row_cases import DTYPES, dropout_of, dropped
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import embedding

pytestmark = pytest.mark.usefixtures("_poisoned", "_few_programs")


QUICK = {
    ("input_ids", torch.float32, 0.3), ("inputs_embeds", torch.bfloat16, 0.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "dtype", "p"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(("input_ids", "inputs_embeds"), DTYPES, (0.0, 0.3))
    ],
    ids=str,
)
def test_embedding_layer_norm(given: str, dtype: torch.dtype, p: float, device: torch.device) -> None:
    rows, size, vocab_size, num_positions = 75, 40, 9, 30
    dropout = dropout_of(p, device)
    ids = torch.randint(0, vocab_size, (rows,), device=device) if given == "input_ids" else None
    position_ids = torch.randint(0, num_positions, (rows,), device=device)
    padding = {"padding_idx": 1, "position_padding_idx": 2}

    def kernel(words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.embedding_layer_norm(
            ids, position_ids, words if ids is not None else positions, positions, weight, bias, 1e-5,
            inputs_embeds=words if ids is None else None, dropout=dropout, backend="triton", **padding,
        )  # fmt: skip

    def oracle(words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gathered = words if ids is None else F.embedding(ids, words, 1)
        return embedding.embedding_layer_norm_oracle(
            gathered, F.embedding(position_ids, positions, 2), weight, bias, 1e-5, dropout
        )

    inputs = [
        torch.randn(shape, device=device).to(dtype)
        for shape in ((vocab_size if ids is not None else rows, size), (num_positions, size), size, size)
    ]
    found = assert_right(kernel, oracle, inputs, (rows, size))
    assert ids is None or (found[1][1] == 0).all()
    assert (found[2][2] == 0).all()


def test_ids_out_of_range_are_clamped(device: torch.device) -> None:
    """Packed ids on a GPU are not checked before the kernel reads them."""
    words, positions = (torch.randn(5, 16, device=device, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(16, device=device), torch.randn(16, device=device)
    wrong = torch.tensor([-7, 0, 4, 2**40, 99], device=device)
    right = torch.tensor([0, 0, 4, 4, 4], device=device)
    rest: Any = (words, positions, weight, bias, 1e-5)
    found = ops.embedding_layer_norm(wrong, wrong, *rest, backend="triton")
    expected = ops.embedding_layer_norm(right, right, *rest, backend="triton")
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    for one, two in zip(
        torch.autograd.grad(found, (words, positions), grad),
        torch.autograd.grad(expected, (words, positions), grad),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_a_frozen_table_gets_no_gradient(device: torch.device) -> None:
    words, positions = torch.randn(5, 16, device=device), torch.randn(5, 16, device=device, requires_grad=True)
    weight, bias = (torch.randn(16, device=device, requires_grad=True) for _ in range(2))
    ids = torch.tensor([3, 1, 1], device=device)
    ops.embedding_layer_norm(ids, ids, words, positions, weight, bias, 1e-5, backend="triton").sum().backward()
    assert words.grad is None
    assert all(leaf.grad is not None for leaf in (positions, weight, bias))


@pytest.mark.parametrize(
    "p", [pytest.param(0.05, marks=pytest.mark.slow), 0.5, pytest.param(0.999, marks=pytest.mark.slow)]
)
def test_the_mask_is_philox_bit_for_bit(p: float, device: torch.device) -> None:
    rows, size, site = 21, 77, 5
    dropout = ops.Dropout(p, ops.draw_seed(device), site)
    expected = philox.keep_rows(dropout.seed.cpu(), site, 0, rows, size, p).to(device)
    ids, table = torch.arange(rows, device=device), torch.randn(rows, size, device=device, requires_grad=True)
    weight, bias = torch.randn(size, device=device), torch.randn(size, device=device, requires_grad=True)
    y = ops.embedding_layer_norm(ids, ids, table, table.detach(), weight, bias, 1e-5, dropout=dropout, backend="triton")
    assert torch.equal(y != 0, expected)
    (grad,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    torch.testing.assert_close(grad, expected.sum(0) * philox.scale(p))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: torch.device) -> None:
    weight, bias = (torch.randn(24, device=device, requires_grad=True) for _ in range(2))
    ids = torch.zeros(rows, dtype=torch.int64, device=device)
    table = torch.randn(3, 24, device=device, requires_grad=True)
    y = ops.embedding_layer_norm(
        ids, ids, table, table, weight, bias, 1e-5, dropout=dropout_of(0.2, device), backend="triton"
    )
    assert y.shape == (rows, 24)
    grads = torch.autograd.grad(y.sum(), [table, weight, bias])
    assert all(grad.isfinite().all() for grad in grads)
    assert rows or all((grad == 0).all() for grad in grads)


@pytest.mark.slow
def test_runs_are_bitwise_equal(device: torch.device) -> None:
    rows = 70_000 if device.type == "cuda" else 70
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))
    table, ids = torch.randn(4, 32, device=device, requires_grad=True), torch.randint(0, 4, (rows,), device=device)
    dropout, grad = dropout_of(0.2, device), torch.randn(rows, 32, device=device)

    def run() -> list[Tensor]:
        y = ops.embedding_layer_norm(ids, ids, table, table, weight, bias, 1e-5, dropout=dropout, backend="triton")
        return [y, *torch.autograd.grad(y, [table, weight, bias], grad)]

    first = run()
    for _ in range(19 if device.type == "cuda" else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))


@dropped
def test_gradcheck_of_the_oracle(p: float) -> None:
    dropout = dropout_of(p, torch.device("cpu"))
    inputs = tuple(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (3, 5), 5, 5))
    assert torch.autograd.gradcheck(
        lambda words, positions, w, b: embedding.embedding_layer_norm_oracle(words, positions, w, b, 1e-5, dropout),
        inputs,
    )
