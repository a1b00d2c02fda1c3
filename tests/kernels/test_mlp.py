"""The feed-forward block of the kernels."""

import pytest
import torch
import torch.nn.functional as F
from helpers.closeness import assert_right
from helpers.row_cases import dropout_of, dropped, dtypes
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import activation, configs, linear
from erniem_fast.ops import Dropout

pytestmark = pytest.mark.usefixtures("_poisoned", "_few_programs")


def oracle(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout: Dropout | None, name: str = "gelu"
) -> Tensor:
    return F.linear(activation.bias_activation_dropout_oracle(F.linear(x, weight1), bias1, name, dropout), weight2)


@dropped
@dtypes
def test_mlp(dtype: torch.dtype, p: float, device: torch.device) -> None:
    dropout = dropout_of(p, device)
    inputs = [torch.randn(shape, device=device).to(dtype) for shape in ((9, 20), (36, 20), 36, (20, 36))]
    assert_right(
        lambda *inputs: ops.mlp(*inputs, dropout=dropout, backend="triton"),
        lambda *inputs: oracle(*inputs, dropout),
        inputs,
        (9, 20),
    )


@dropped
def test_mlp_with_relu(p: float, device: torch.device) -> None:
    dropout = dropout_of(p, device)
    assert_right(
        lambda *inputs: ops.mlp(*inputs, activation="relu", dropout=dropout, backend="triton"),
        lambda *inputs: oracle(*inputs, dropout, "relu"),
        [torch.randn(shape, device=device) for shape in ((9, 20), (36, 20), 36, (20, 36))],
        (9, 20),
    )


@pytest.mark.parametrize(("name", "p"), [("gelu", 0.0), ("gelu", 0.3), ("relu", 0.0)])
def test_the_activation_in_the_epilogue(
    name: str, p: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "FUSED_GELU", {configs.architecture(device): 5})
    launched = []
    launch = linear.launch_linear
    monkeypatch.setattr("erniem_fast.kernels.mlp.launch_linear", lambda *a: launched.append(a[0].shape) or launch(*a))
    dropout = dropout_of(p, device)

    def check(rows: int, size: int, dtype: torch.dtype) -> None:
        shapes = ((rows, size), (36, size), 36, (size, 36))
        assert_right(
            lambda *inputs: ops.mlp(*inputs, activation=name, dropout=dropout, backend="triton"),
            lambda *inputs: oracle(*inputs, dropout, name),
            [torch.randn(shape, device=device).to(dtype) for shape in shapes],
            (rows, size),
        )

    check(9, 24, torch.bfloat16)
    assert launched == [(9, 24)]
    check(4, 24, torch.bfloat16)  # too few rows
    check(9, 20, torch.bfloat16)  # 40 bytes
    check(9, 24, torch.float32)
    assert len(launched) == 1


def test_only_the_first_product_is_kept(device: torch.device) -> None:
    rows, hidden, inner = 64, 16, 256
    x, weight1, bias1, weight2 = (
        torch.randn(shape, device=device, requires_grad=True)
        for shape in ((rows, hidden), (inner, hidden), inner, (hidden, inner))
    )
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.mlp(x, weight1, bias1, weight2, dropout=dropout_of(0.1, device), backend="triton")
    for leaf in (x, weight1, bias1, weight2):
        kept.pop(leaf.untyped_storage().data_ptr())
    assert sum(kept.values()) <= 4 * rows * inner + 8


def test_frozen_weights_get_no_gradient(device: torch.device) -> None:
    """The block passes gradients on, as LoRA needs it, and computes no others."""
    x = torch.randn(7, 20, device=device, requires_grad=True)
    weight1, bias1, weight2 = (torch.randn(shape, device=device) for shape in ((36, 20), 36, (20, 36)))
    grad = torch.randn(7, 20, device=device)
    expected = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    (found,) = torch.autograd.grad(ops.mlp(x, weight1, bias1, weight2, backend="triton"), x, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    weight2.requires_grad_()
    out = ops.mlp(x.detach(), weight1, bias1, weight2, backend="triton")
    (found,) = torch.autograd.grad(out, weight2, grad)
    (wanted,) = torch.autograd.grad(F.linear(F.gelu(F.linear(x.detach(), weight1, bias1)), weight2), weight2, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: torch.device) -> None:
    x = torch.randn(rows, 24, device=device, requires_grad=True)
    block = [torch.randn(shape, device=device) for shape in ((8, 24), 8, (24, 8))]
    y = ops.mlp(x, *block, dropout=dropout_of(0.2, device), backend="triton")
    assert y.shape == (rows, 24)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.isfinite().all()
    assert rows or (grad == 0).all()
