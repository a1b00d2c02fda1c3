"""The kernels of bias, GELU and dropout."""

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from helpers.closeness import assert_right
from helpers.row_cases import dropout_of, dropped, swept
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import activation

pytestmark = pytest.mark.usefixtures("_poisoned", "_few_programs")


@swept
def test_bias_gelu_dropout(
    shape: tuple[int, int], dtype: torch.dtype, p: float, biased: bool, device: torch.device
) -> None:
    dropout = dropout_of(p, device)

    def kernel(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.bias_gelu_dropout(x, bias, dropout=dropout, backend="triton")

    def oracle(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return activation.bias_gelu_dropout_oracle(x, bias, dropout)

    inputs = [3 * torch.randn(*shape, device=device).to(dtype)]
    inputs += [torch.randn(shape[1], device=device).to(dtype)] if biased else []
    assert_right(kernel, oracle, inputs, shape)


@dropped
def test_backward_recomputes_the_result(p: float, device: torch.device) -> None:
    x, bias, dy = (torch.randn(shape, device=device) for shape in ((13, 100), 100, (13, 100)))
    dropout = dropout_of(p, device)
    y = activation.bias_gelu_dropout_backward(dy, x, bias, dropout, True)[2]
    assert torch.equal(y, activation.bias_gelu_dropout(x, bias, dropout))
    assert activation.bias_gelu_dropout_backward(dy, x, bias, dropout, False)[2].shape == (0, 100)


def test_gelu_of_extreme_values(device: torch.device) -> None:
    x = torch.tensor([[-1e38, -1e5, -40.0, -1e-30, 0.0, 1e-30, 40.0, 1e5, 1e38]], device=device, requires_grad=True)
    y = ops.bias_gelu_dropout(x, backend="triton")
    torch.testing.assert_close(y, F.gelu(x.detach()))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1.0]], device=device))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999])
def test_the_mask_is_philox_bit_for_bit(p: float, device: torch.device) -> None:
    rows, size, site = 21, 77, 5
    dropout = ops.Dropout(p, ops.draw_seed(device), site)
    expected = philox.keep_rows(dropout.seed.cpu(), site, 0, rows, size, p).to(device)
    leaf = torch.full((rows, size), 30.0, device=device, requires_grad=True)  # gelu is the identity there
    y = ops.bias_gelu_dropout(leaf, dropout=dropout, backend="triton")
    assert torch.equal(y != 0, expected)
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(grad != 0, expected)


def test_the_bias_need_not_be_contiguous(device: torch.device) -> None:
    x, bias = torch.randn(5, 24, device=device), torch.randn(24, 2, device=device)[:, 0]
    found = ops.bias_gelu_dropout(x, bias, backend="triton")
    assert torch.equal(found, ops.bias_gelu_dropout(x, bias.contiguous(), backend="triton"))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: torch.device) -> None:
    x = torch.randn(rows, 24, device=device, requires_grad=True)
    bias = torch.randn(24, device=device, requires_grad=True)
    y = ops.bias_gelu_dropout(x, bias, dropout=dropout_of(0.2, device), backend="triton")
    assert y.shape == (rows, 24)
    grads = torch.autograd.grad(y.sum(), [x, bias])
    assert all(grad.isfinite().all() for grad in grads)
    assert rows or all((grad == 0).all() for grad in grads)


def test_runs_are_bitwise_equal(device: torch.device) -> None:
    rows = 70_000 if device.type == "cuda" else 70
    x = torch.randn(rows, 32, device=device, requires_grad=True)
    bias = torch.randn(32, device=device, requires_grad=True)
    dropout, grad = dropout_of(0.2, device), torch.randn(rows, 32, device=device)

    def run() -> list[Tensor]:
        y = ops.bias_gelu_dropout(x, bias, dropout=dropout, backend="triton")
        return [y, *torch.autograd.grad(y, [x, bias], grad)]

    first = run()
    for _ in range(19 if device.type == "cuda" else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))


@dropped
def test_gradcheck_of_the_oracle(p: float) -> None:
    dropout = dropout_of(p, torch.device("cpu"))
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), 5))
    assert torch.autograd.gradcheck(lambda x, b: activation.bias_gelu_dropout_oracle(x, b, dropout), inputs)
