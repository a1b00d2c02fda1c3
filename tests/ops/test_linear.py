"""The batch-invariant linear layer: shapes, and operands that it refuses."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from erniem_fast import ops


@torch.no_grad()
def test_any_leading_dimensions(device: torch.device) -> None:
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((2, 3, 8), (5, 8), (5,)))
    expected = (x.double() @ weight.double().T + bias.double()).float()
    torch.testing.assert_close(ops.linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.linear(x[0, 0], weight), expected[0, 0] - bias, rtol=1e-5, atol=1e-5)
    assert ops.linear(x[:0], weight).shape == (0, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(4, 6), "weight": torch.randn(3, 6)}, r"multiple of 4 in torch.float32, got .* \(3, 6\)"),
        ({"weight": torch.randn(3, 8).half()}, "linear layers of the operand's dtype"),
        ({"bias": torch.randn(3).half()}, "a bias of torch.float32, the operands' dtype, got torch.float16"),
        ({"x": torch.randn(4, 8).double()}, "float32, bfloat16 or float16, got torch.float64"),
        ({"weight": torch.randn(3, 8, requires_grad=True)}, "is for inference"),
    ],
)
def test_operands_that_are_refused(change: dict[str, Any], message: str, device: torch.device) -> None:
    operands = {"x": torch.randn(4, 8), "weight": torch.randn(3, 8), "bias": torch.randn(3)}
    with torch.no_grad():
        assert ops.linear(**{name: value.to(device) for name, value in operands.items()}).shape == (4, 3)
    with pytest.raises(ValueError, match=message):
        ops.linear(**{name: value.to(device) for name, value in (operands | change).items()})
