"""The linear layer's kernel, alone and with an activation in its epilogue."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from helpers.closeness import error
from helpers.row_cases import dropout_of

from erniem_fast.kernels import activation, linear
from erniem_fast.kernels.configs import LinearConfig

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


@pytest.mark.parametrize(
    ("dtype", "name", "p"),
    [
        (torch.float32, "gelu", 0.3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (torch.float32, "gelu", 0.0),
                (torch.bfloat16, "gelu", 0.0),
                (torch.bfloat16, "gelu", 0.3),
                (torch.bfloat16, "relu", 0.0),
            )
        ),
    ],
    ids=str,
)
def test_the_epilogue_is_the_operation_on_the_product(
    dtype: torch.dtype, name: str, p: float, device: torch.device
) -> None:
    x, weight, bias = operands((150, 40, 200), dtype, device)
    dropout = dropout_of(p, device, site=5)
    y, product = linear.launch_linear(x, weight, bias, name, dropout, save=True)
    assert torch.equal(product, linear.linear(x, weight, None))
    assert torch.equal(y, activation.bias_activation_dropout(product, bias, name, dropout))
    again, nothing = linear.launch_linear(x, weight, bias, name, dropout)
    assert torch.equal(y, again)
    assert nothing.shape == (0, 200)
    expected, _ = linear.linear_oracle(x.double(), weight.double(), bias.double(), name, dropout)
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


def test_an_epilogue_in_halves(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = operands((70, 40, 100), torch.bfloat16, device)
    dropout = dropout_of(0.3, device, site=5)
    results = []
    for parts in (1, 2):
        config = LinearConfig(64, 64, 32, 4, 2, False, parts=parts)
        monkeypatch.setattr(linear, "linear_config", lambda *_, config=config: config)
        results += [linear.launch_linear(x, weight, bias, "gelu", dropout, save=True)]
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
