"""The kernels of dropout, residual addition and layer-norm."""

from typing import Any

import pytest
import torch
from helpers import philox
from helpers.closeness import FLOAT32, assert_right, error
from helpers.row_cases import dropout_of, dropped, dtypes, swept
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import common, configs, layer_norm

pytestmark = pytest.mark.usefixtures("_poisoned", "_few_programs")


@swept
def test_dropout_add_layer_norm(
    shape: tuple[int, int], dtype: torch.dtype, p: float, biased: bool, device: torch.device
) -> None:
    dropout = dropout_of(p, device)

    def kernel(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        return ops.dropout_add_layer_norm(
            x, residual, weight, bias, 1e-5, linear_bias=linear_bias, dropout=dropout, backend="triton"
        )

    def oracle(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        return layer_norm.dropout_add_layer_norm_oracle(x, residual, weight, bias, linear_bias, 1e-5, dropout)

    inputs = [torch.randn(*shape, device=device).to(dtype) for _ in range(2)]
    inputs += [torch.randn(shape[1], device=device).to(dtype) for _ in range(3 if biased else 2)]
    assert_right(kernel, oracle, inputs, shape)


@pytest.mark.parametrize(("block_m", "num_warps"), [(1, 1), (4, 4), (2, 1), (2, 4), (1, 8)])
def test_any_rows_and_warps(
    block_m: int, num_warps: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks in which a warp owns a row, several or a part of one; the last chunk is empty, the last rows too."""
    config = configs.RowConfig(block_m, num_warps, max_programs=3, min_rows=3, num_stages=2)
    monkeypatch.setattr(layer_norm, "row_config", lambda *_: config)
    dropout, (m, n) = dropout_of(0.3, device), (9, 5 * 128)

    def kernel(*inputs: Tensor) -> Tensor:
        x, residual, weight, bias, linear_bias = inputs
        return ops.dropout_add_layer_norm(
            x, residual, weight, bias, 1e-5, linear_bias=linear_bias, dropout=dropout, backend="triton"
        )

    def oracle(*inputs: Tensor) -> Tensor:
        return layer_norm.dropout_add_layer_norm_oracle(*inputs, 1e-5, dropout)

    inputs = [torch.randn(*shape, device=device) for shape in ((m, n), (m, n), (n,), (n,), (n,))]
    assert_right(kernel, oracle, inputs, (m, n))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1000, 16_896, 16_897, 65_536])
@pytest.mark.parametrize("block_m", [1, 4])
def test_backward_takes_enough_rows_a_program(rows: int, block_m: int) -> None:
    config = configs.RowConfig(block_m, 4, max_programs=1056, min_rows=16)
    programs, rows_per_program = common.partition(rows, config)
    assert (programs - 1) * rows_per_program < rows <= programs * rows_per_program
    assert programs <= config.max_programs
    assert rows_per_program >= config.min_rows
    assert rows_per_program % block_m == 0


@dtypes
def test_statistics_are_those_of_the_stored_sum(dtype: torch.dtype, device: torch.device) -> None:
    """Backward reads the stored sum, and must use the statistics that forward used."""
    x, residual = (torch.randn(11, 100, device=device).to(dtype) for _ in range(2))
    vector = torch.ones(100, device=device, dtype=dtype)
    _, z, mean, rstd = layer_norm.dropout_add_layer_norm(x, residual, vector, vector, None, 1e-5, None, True)
    assert z.dtype == dtype
    stored = z.double()
    torch.testing.assert_close(mean.double(), stored.mean(1), rtol=0, atol=1e-6)
    expected = (stored.var(1, unbiased=False) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)


@dropped
def test_mixed_dtypes(p: float, device: torch.device) -> None:
    """The dtypes of autocast: the product in bfloat16, the residual and the parameters in float32."""
    dropout = dropout_of(p, device)
    x = torch.randn(9, 40, device=device).bfloat16().requires_grad_()
    residual, weight, bias, linear_bias = (
        torch.randn(shape, device=device, requires_grad=True) for shape in ((9, 40), 40, 40, 40)
    )
    arguments: Any = (x, residual, weight, bias)
    y = ops.dropout_add_layer_norm(*arguments, 1e-5, linear_bias=linear_bias, dropout=dropout, backend="triton")
    assert y.dtype == torch.float32
    leaves = [leaf.detach().double().requires_grad_() for leaf in (*arguments, linear_bias)]
    expected = layer_norm.dropout_add_layer_norm_oracle(*leaves, 1e-5, dropout)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, [*arguments, linear_bias], grad)
    wanted = torch.autograd.grad(expected, leaves, grad.double())
    assert [one.dtype for one in found] == [leaf.dtype for leaf in (*arguments, linear_bias)]
    assert error(y, expected) <= FLOAT32 * expected.abs().max()
    for one, two in zip(found[1:], wanted[1:], strict=True):
        assert error(one, two) <= FLOAT32 * two.abs().max()
    assert (
        torch.equal(found[0], wanted[0].float().bfloat16()) or error(found[0], wanted[0]) < 0.01 * wanted[0].abs().max()
    )


@pytest.mark.parametrize(
    "p", [pytest.param(0.05, marks=pytest.mark.slow), 0.5, pytest.param(0.999, marks=pytest.mark.slow)]
)
def test_the_mask_is_philox_bit_for_bit(p: float, device: torch.device) -> None:
    rows, size, site = 21, 77, 5
    dropout = ops.Dropout(p, ops.draw_seed(device), site)
    expected = philox.keep_rows(dropout.seed.cpu(), site, 0, rows, size, p).to(device)
    product = torch.randn(rows, size, device=device, requires_grad=True)
    residual, vector = torch.randn(rows, size, device=device), torch.randn(size, device=device)
    y = ops.dropout_add_layer_norm(product, residual, vector, vector, 1e-5, dropout=dropout, backend="triton")
    z = layer_norm.dropout_add_layer_norm(product, residual, vector, vector, None, 1e-5, dropout, True)[1]
    assert torch.equal(z != residual, expected)
    (grad,) = torch.autograd.grad(y, product, torch.randn_like(y))
    assert torch.equal(grad != 0, expected)


def test_vectors_need_not_be_contiguous(device: torch.device) -> None:
    x, wide = torch.randn(5, 24, device=device), torch.randn(24, 2, device=device)

    def run(one: Tensor, two: Tensor) -> Tensor:
        return ops.dropout_add_layer_norm(x, x, one, two, 1e-5, linear_bias=two, backend="triton")

    assert torch.equal(run(wide[:, 0], wide[:, 1]), run(wide[:, 0].contiguous(), wide[:, 1].contiguous()))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: torch.device) -> None:
    x, residual = (torch.randn(rows, 24, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(24, device=device, requires_grad=True) for _ in range(2))
    y = ops.dropout_add_layer_norm(
        x, residual, weight, bias, 1e-5, linear_bias=bias, dropout=dropout_of(0.2, device), backend="triton"
    )
    assert y.shape == (rows, 24)
    grads = torch.autograd.grad(y.sum(), [x, residual, weight, bias])
    assert all(grad.isfinite().all() for grad in grads)
    assert rows or all((grad == 0).all() for grad in grads)


@pytest.mark.slow
def test_runs_are_bitwise_equal(device: torch.device) -> None:
    rows = 70_000 if device.type == "cuda" else 70
    x, residual = (torch.randn(rows, 32, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))
    dropout, grad = dropout_of(0.2, device), torch.randn(rows, 32, device=device)

    def run() -> list[Tensor]:
        y = ops.dropout_add_layer_norm(
            x, residual, weight, bias, 1e-5, linear_bias=bias, dropout=dropout, backend="triton"
        )
        return [y, *torch.autograd.grad(y, [x, residual, weight, bias], grad)]

    first = run()
    for _ in range(19 if device.type == "cuda" else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))


@dropped
def test_gradcheck_of_the_oracle(p: float) -> None:
    dropout = dropout_of(p, torch.device("cpu"))

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda x, r, w, b, lb: layer_norm.dropout_add_layer_norm_oracle(x, r, w, b, lb, 1e-5, dropout),
        (leaf(3, 5), leaf(3, 5), leaf(5), leaf(5), leaf(5)),
    )
