"""The kernels of bias, activation and dropout."""

import math
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from helpers.closeness import assert_right
from helpers.paths import ROOT
from helpers.row_cases import dropout_of, dropped, dtypes, swept
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import activation
from erniem_fast.ops.activation import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("_poisoned", "_few_programs")


@swept
def test_bias_gelu_dropout(
    shape: tuple[int, int], dtype: torch.dtype, p: float, biased: bool, device: torch.device
) -> None:
    dropout = dropout_of(p, device)

    def kernel(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.bias_activation_dropout(x, bias, dropout=dropout, backend="triton")

    def oracle(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return activation.bias_activation_dropout_oracle(x, bias, "gelu", dropout)

    inputs = [3 * torch.randn(*shape, device=device).to(dtype)]
    inputs += [torch.randn(shape[1], device=device).to(dtype)] if biased else []
    assert_right(kernel, oracle, inputs, shape)


@dropped
@dtypes
def test_bias_relu_dropout(dtype: torch.dtype, p: float, device: torch.device) -> None:
    dropout, shape = dropout_of(p, device), (13, 100)
    assert_right(
        lambda *inputs: ops.bias_activation_dropout(*inputs, activation="relu", dropout=dropout, backend="triton"),
        lambda *inputs: activation.bias_activation_dropout_oracle(*inputs, "relu", dropout),
        [torch.randn(shape, device=device).to(dtype), torch.randn(100, device=device).to(dtype)],
        shape,
    )


@dropped
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_recomputes_the_result(name: str, p: float, device: torch.device) -> None:
    x, bias, dy = (torch.randn(shape, device=device) for shape in ((13, 100), 100, (13, 100)))
    dropout = dropout_of(p, device)
    y = activation.bias_activation_dropout_backward(dy, x, bias, name, dropout, True)[2]
    assert torch.equal(y, activation.bias_activation_dropout(x, bias, name, dropout))
    assert activation.bias_activation_dropout_backward(dy, x, bias, name, dropout, False)[2].shape == (0, 100)


def arguments_of_gelu() -> Tensor:
    """Dense where gelu is neither 0 nor its argument, and floats of every magnitude; finite, float32."""
    anything = torch.randint(-(2**31), 2**31, (30_000,), dtype=torch.int32).view(torch.float32)
    return torch.cat([torch.linspace(-9, 9, 100_001), 2 * torch.randn(50_000), anything[anything.isfinite()]])


def assert_is_gelu(x: Tensor, y: Tensor, slope: Tensor) -> None:
    """Value and gradient to the accuracy that the kernels promise."""
    x = x.double()
    tail = torch.erfc(x.abs() / math.sqrt(2)) / 2
    phi = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    exact = torch.where(x < 0, x * tail, x * (1 - tail))
    size = exact.abs().float()
    half_ulp = (torch.nextafter(size, torch.full_like(size, torch.inf)).double() - size.double()) / 2
    assert ((y.double() - exact).abs() - half_ulp).max() <= 1e-7
    wanted = torch.where(x < 0, tail, 1 - tail) + torch.where(phi == 0, 0, x * phi)
    assert (slope.double() - wanted).abs().max() <= 3e-7
    inner = (x > -5.5) & (x < -1)
    assert (y.double() / exact - 1)[inner].abs().max() <= 2e-3  # less than half a unit in bfloat16's last place


def test_the_error_of_gelu(device: torch.device) -> None:
    x = arguments_of_gelu().to(device)
    rows = F.pad(x, (0, -len(x) % 1024)).view(-1, 1024).requires_grad_()
    y = ops.bias_activation_dropout(rows, backend="triton")
    (slope,) = torch.autograd.grad(y, rows, torch.ones_like(y))
    assert_is_gelu(rows.detach().flatten(), y.detach().flatten(), slope.flatten())


@pytest.mark.parametrize("phi_error", [-1, 0, 1])
@pytest.mark.parametrize("tail_error", [-1, 0, 1])
def test_the_error_of_gelu_where_powers_of_2_are_approximate(tail_error: int, phi_error: int) -> None:
    """The kernels' formulas, rounded step by step to float32, with exp2 as far off as a GPU's ex2.approx may be."""

    def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
        return (a.double() * b + c).float()

    def exp2(x: Tensor, error: int) -> Tensor:
        return (torch.exp2(x.double()) * (1 + error * 2.0**-22)).float()

    x = arguments_of_gelu()
    t = x.abs().clamp(max=15)
    p = torch.full_like(t, activation.P[0])
    for coefficient in torch.tensor(activation.P[1:]):
        p = fma(p, t, coefficient)
    tail = exp2(fma(p, t, -1), tail_error)
    phi = exp2(fma(t * t, -0.5 * math.log2(math.e), -0.5 * math.log2(2 * math.pi)), phi_error)
    slope = fma(-t, phi, tail)
    assert_is_gelu(x, fma(-t, tail, x.relu()), torch.where(x < 0, slope, 1 - slope))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_values(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Limits are kept, where torch's gelu of an infinity is NaN; a NaN stays one."""
    inf, nan = torch.inf, torch.nan
    x = [-inf, -1e38, -1e5, -40.0, -1e-30, 0.0, 1e-30, 40.0, 1e5, 1e38, inf, nan]
    zero, one = (0.5, 0.5) if name == "gelu" else (0, 1)
    slopes = [0, 0, 0, 0, zero, zero if name == "gelu" else 0, one, 1, 1, 1, 1, nan if name == "gelu" else 1]
    leaf = torch.tensor([x], device=device, dtype=dtype, requires_grad=True)
    y = ops.bias_activation_dropout(leaf, activation=name, backend="triton")
    expected = leaf.detach().relu()
    expected[0, 4:7] = ACTIVATIONS[name](leaf.detach()[0, 4:7])
    torch.testing.assert_close(y.detach(), expected, equal_nan=True)
    assert not y[0, 0].signbit()
    y.backward(torch.ones_like(y))
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, torch.tensor([slopes], device=device, dtype=dtype), equal_nan=True)


SCRIPT = """
from bench.tools.compile_kernels import CompileCase, call

for launch in ("activation", "linear, gelu"):
    call(CompileCase("sm_90", "bfloat16", launch, 3072), lambda kernel, options, make: print(make().asm["ptx"]))
"""


@pytest.mark.slow
def test_compiled_minima_and_maxima_keep_nan() -> None:
    """The interpreter's do so whatever they are told."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"\b((?:min|max)\S*\.f32)\b", done.stdout)
    assert set(found) == {"min.NaN.f32", "max.NaN.f32"}


def test_the_gradient_of_relu_is_torch_s(device: torch.device) -> None:
    x = torch.tensor([[-1.0, -0.0, 0.0, 1e-40, 2.0, torch.nan, -torch.inf, torch.inf]], device=device).requires_grad_()
    for grad in (torch.randn(1, 8, device=device), torch.full((1, 8), torch.inf, device=device)):
        grads = [
            torch.autograd.grad(ops.bias_activation_dropout(x, activation="relu", backend=backend), x, grad)[0]
            for backend in ("triton", "torch")
        ]
        assert torch.equal(*grads)


@pytest.mark.parametrize(
    "p", [pytest.param(0.05, marks=pytest.mark.slow), 0.5, pytest.param(0.999, marks=pytest.mark.slow)]
)
def test_the_mask_is_philox_bit_for_bit(p: float, device: torch.device) -> None:
    rows, size, site = 21, 77, 5
    dropout = ops.Dropout(p, ops.draw_seed(device), site)
    expected = philox.keep_rows(dropout.seed.cpu(), site, 0, rows, size, p).to(device)
    leaf = torch.full((rows, size), 30.0, device=device, requires_grad=True)  # gelu is the identity there
    y = ops.bias_activation_dropout(leaf, dropout=dropout, backend="triton")
    assert torch.equal(y != 0, expected)
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(grad != 0, expected)


def test_the_bias_need_not_be_contiguous(device: torch.device) -> None:
    x, bias = torch.randn(5, 24, device=device), torch.randn(24, 2, device=device)[:, 0]
    found = ops.bias_activation_dropout(x, bias, backend="triton")
    assert torch.equal(found, ops.bias_activation_dropout(x, bias.contiguous(), backend="triton"))


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: torch.device) -> None:
    x = torch.randn(rows, 24, device=device, requires_grad=True)
    bias = torch.randn(24, device=device, requires_grad=True)
    y = ops.bias_activation_dropout(x, bias, dropout=dropout_of(0.2, device), backend="triton")
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
        y = ops.bias_activation_dropout(x, bias, dropout=dropout, backend="triton")
        return [y, *torch.autograd.grad(y, [x, bias], grad)]

    first = run()
    for _ in range(19 if device.type == "cuda" else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))


@dropped
def test_gradcheck_of_the_oracle(p: float) -> None:
    dropout = dropout_of(p, torch.device("cpu"))
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 5), 5))
    assert torch.autograd.gradcheck(
        lambda x, b: activation.bias_activation_dropout_oracle(x, b, "gelu", dropout), inputs
    )
