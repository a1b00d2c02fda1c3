"""The linear layer's kernel, alone, with GELU in its epilogue, and in the feed-forward block."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from helpers.closeness import assert_right, error

from erniem_fast import ops
from erniem_fast.kernels import activation, configs, linear

SHAPES = [(1, 24, 3), (37, 40, 200), (300, 72, 130), (64, 128, 128)]
"""rows, in_features, out_features: below a tile, tails in all directions, several tiles a program, whole tiles."""


def operands(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    rows, size, out = shape
    return [torch.randn(shape, device=device).to(dtype) for shape in ((rows, size), (out, size), (out,))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape: tuple[int, int, int], dtype: torch.dtype, bias: bool, device: torch.device) -> None:
    x, weight, vector = operands(shape, dtype, device)
    added = vector if bias else None
    found = linear.linear(x, weight, added)
    expected = F.linear(x.double(), weight.double(), None if added is None else added.double())
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert error(found, expected) <= 1e-5 * expected.abs().max().item()
    else:
        product = F.linear(x, weight)
        plain = product if added is None else product + added
        rounding = torch.finfo(dtype).eps / 2 * expected.abs().max().item()
        assert error(found, expected) <= 2 * error(plain, expected) + rounding


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_epilogue_is_the_operation_on_the_product(dtype: torch.dtype, p: float, device: torch.device) -> None:
    x, weight, bias = operands((150, 40, 200), dtype, device)
    seed = ops.draw_seed(device)
    y, product = linear.launch_linear(x, weight, bias, True, p, seed, 5, save=True)
    assert torch.equal(product, linear.linear(x, weight, None))
    assert torch.equal(y, activation.bias_gelu_dropout(product, bias, p, seed, 5))
    again, nothing = linear.launch_linear(x, weight, bias, True, p, seed, 5)
    assert torch.equal(y, again)
    assert nothing.shape == (0, 200)
    expected, _ = linear.linear_oracle(x.double(), weight.double(), bias.double(), True, p, seed, 5)
    assert error(y, expected) <= (1e-5 if dtype == torch.float32 else 2e-2) * expected.abs().max().item()


@pytest.mark.usefixtures("_one_order")
def test_rows_do_not_depend_on_each_other(device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = operands((300, 136, 100), dtype, device)
        together = linear.linear(x, weight, bias)
        for rows in (slice(0, 1), slice(63, 66), slice(17, 217), slice(299, 300)):
            assert torch.equal(linear.linear(x[rows], weight, bias), together[rows])
        x[100:200] = torch.inf
        assert torch.equal(linear.linear(x, weight, bias)[:100], together[:100])


def test_operands_in_odd_places(device: torch.device) -> None:
    """Views that are not contiguous, or do not begin at a multiple of 16 bytes."""
    x, weight, bias = operands((20, 24, 40), torch.float32, device)
    expected = linear.linear(x, weight, bias)
    wide = torch.full((20, 30), torch.nan, device=device)
    wide[:, 3:27] = x
    assert torch.equal(linear.linear(wide[:, 3:27], weight, bias), expected)
    lone = torch.full((1, 25), torch.nan, device=device)[:, :24]  # contiguous, and its row is no multiple of 16 bytes
    lone[:] = x[:1]
    assert torch.equal(linear.linear(lone, weight, bias), expected[:1])
    late = torch.full((20 * 24 + 1,), torch.nan, device=device)
    late[1:] = x.flatten()
    assert torch.equal(linear.linear(late[1:].view(20, 24), weight, bias), expected)
    late_weight = torch.full((40 * 24 + 1,), torch.nan, device=device)
    late_weight[1:] = weight.flatten()
    assert torch.equal(linear.linear(x, late_weight[1:].view(40, 24), bias), expected)


def test_no_rows(device: torch.device) -> None:
    x, weight, bias = operands((0, 24, 40), torch.float32, device)
    assert linear.linear(x, weight, bias).shape == (0, 40)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_mlp_with_gelu_in_the_epilogue(p: float, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "FUSED_GELU", {configs.architecture(device): 5})
    launched = []
    launch = linear.launch_linear
    monkeypatch.setattr("erniem_fast.kernels.mlp.launch_linear", lambda *a: launched.append(a[0].shape) or launch(*a))
    seed = ops.draw_seed(device)

    def kernel(*inputs: Tensor) -> Tensor:
        return ops.mlp(*inputs, dropout_p=p, seed=seed, site=3, backend="triton")

    def oracle(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor) -> Tensor:
        return F.linear(activation.bias_gelu_dropout_oracle(F.linear(x, weight1), bias1, p, seed, 3), weight2)

    def check(rows: int, size: int, dtype: torch.dtype) -> None:
        shapes = ((rows, size), (36, size), 36, (size, 36))
        assert_right(kernel, oracle, [torch.randn(shape, device=device).to(dtype) for shape in shapes], (rows, size))

    check(9, 24, torch.bfloat16)
    assert launched == [(9, 24)]
    check(4, 24, torch.bfloat16)  # too few rows
    check(9, 20, torch.bfloat16)  # 40 bytes
    check(9, 24, torch.float32)
    assert len(launched) == 1
