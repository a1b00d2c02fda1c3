"""The kernels that work on rows: layer-norm, GELU, the feed-forward block, embedding and the tables' gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import philox
from helpers.closeness import FLOAT32, assert_right, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ops
from erniem_fast.kernels import activation, configs, embedding, layer_norm
from erniem_fast.kernels.segment_sum import CHUNK, segment_sum, segment_sum_oracle

pytestmark = pytest.mark.usefixtures("_poisoned")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PROGRAMS = 5
"""Most programs of a backward pass where it is interpreted, so that few rows are more rows than programs."""
SIZES = [(1, 48), (13, 100), (47, 16), (2, 768), (1, 4096)] + [(70_000, 768)] * torch.cuda.is_available()
"""Rows and columns: fewer and more rows than programs, with and without a tail."""
dropped = pytest.mark.parametrize("p", [0.0, 0.3])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
sizes = pytest.mark.parametrize(("rows", "size"), SIZES)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if device.type == "cpu":
        for module in (layer_norm, activation, embedding):

            def few(*arguments: Any) -> configs.RowConfig:
                return replace(configs.row_config(*arguments), programs=PROGRAMS)

            monkeypatch.setattr(module, "row_config", few)


@dropped
@dtypes
@sizes
@pytest.mark.parametrize("biased", [False, True])
def test_dropout_add_layer_norm(
    rows: int, size: int, biased: bool, dtype: torch.dtype, p: float, device: torch.device
) -> None:
    seed = ops.draw_seed(device)

    def kernel(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        return ops.dropout_add_layer_norm(
            x, residual, weight, bias, 1e-5, linear_bias=linear_bias, dropout_p=p, seed=seed, site=3, backend="triton"
        )

    def oracle(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor | None = None) -> Tensor:
        return layer_norm.dropout_add_layer_norm_oracle(x, residual, weight, bias, linear_bias, 1e-5, p, seed, 3)

    inputs = [torch.randn(rows, size, device=device).to(dtype) for _ in range(2)]
    inputs += [torch.randn(size, device=device).to(dtype) for _ in range(3 if biased else 2)]
    assert_right(kernel, oracle, inputs, (rows, size))


@dtypes
def test_statistics_are_those_of_the_stored_sum(dtype: torch.dtype, device: torch.device) -> None:
    """Or backward, which reads it, would use others than forward."""
    x, residual = (torch.randn(11, 100, device=device).to(dtype) for _ in range(2))
    vector = torch.ones(100, device=device, dtype=dtype)
    _, z, mean, rstd = layer_norm.dropout_add_layer_norm(x, residual, vector, vector, None, 1e-5, 0.0, None, 0, True)
    assert z.dtype == dtype
    stored = z.double()
    torch.testing.assert_close(mean.double(), stored.mean(1), rtol=0, atol=1e-6)
    expected = (stored.var(1, unbiased=False) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)


@dropped
def test_layer_norm_of_mixed_dtypes(p: float, device: torch.device) -> None:
    """As under autocast: the product in bfloat16, the residual and the parameters in float32."""
    seed = ops.draw_seed(device)
    x = torch.randn(9, 40, device=device).bfloat16().requires_grad_()
    residual, weight, bias, linear_bias = (
        torch.randn(shape, device=device, requires_grad=True) for shape in ((9, 40), 40, 40, 40)
    )
    arguments: Any = (x, residual, weight, bias)
    y = ops.dropout_add_layer_norm(
        *arguments, 1e-5, linear_bias=linear_bias, dropout_p=p, seed=seed, site=3, backend="triton"
    )
    assert y.dtype == torch.float32
    leaves = [leaf.detach().double().requires_grad_() for leaf in (*arguments, linear_bias)]
    expected = layer_norm.dropout_add_layer_norm_oracle(*leaves, 1e-5, p, seed, 3)
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


@dropped
@dtypes
@sizes
@pytest.mark.parametrize("biased", [False, True])
def test_bias_gelu_dropout(
    rows: int, size: int, biased: bool, dtype: torch.dtype, p: float, device: torch.device
) -> None:
    seed = ops.draw_seed(device)

    def kernel(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.bias_gelu_dropout(x, bias, dropout_p=p, seed=seed, site=3, backend="triton")

    def oracle(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return activation.bias_gelu_dropout_oracle(x, bias, p, seed, 3)

    inputs = [3 * torch.randn(rows, size, device=device).to(dtype)]
    inputs += [torch.randn(size, device=device).to(dtype)] if biased else []
    assert_right(kernel, oracle, inputs, (rows, size))


def test_gelu_of_extreme_values(device: torch.device) -> None:
    x = torch.tensor([[-1e38, -1e5, -40.0, -1e-30, 0.0, 1e-30, 40.0, 1e5, 1e38]], device=device, requires_grad=True)
    y = ops.bias_gelu_dropout(x, backend="triton")
    torch.testing.assert_close(y, F.gelu(x.detach()))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1.0]], device=device))


@dropped
@dtypes
def test_mlp(dtype: torch.dtype, p: float, device: torch.device) -> None:
    seed = ops.draw_seed(device)

    def kernel(*inputs: Tensor) -> Tensor:
        return ops.mlp(*inputs, dropout_p=p, seed=seed, site=3, backend="triton")

    def oracle(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor) -> Tensor:
        return F.linear(activation.bias_gelu_dropout_oracle(F.linear(x, weight1), bias1, p, seed, 3), weight2)

    inputs = [torch.randn(shape, device=device).to(dtype) for shape in ((9, 20), (36, 20), 36, (20, 36))]
    assert_right(kernel, oracle, inputs, (9, 20))


def test_mlp_keeps_the_first_product_only(device: torch.device) -> None:
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
        ops.mlp(x, weight1, bias1, weight2, dropout_p=0.1, seed=ops.draw_seed(device), backend="triton")
    for leaf in (x, weight1, bias1, weight2):
        kept.pop(leaf.untyped_storage().data_ptr())
    assert sum(kept.values()) <= 4 * rows * inner + 8


@dropped
@dtypes
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_embedding_layer_norm(given: str, dtype: torch.dtype, p: float, device: torch.device) -> None:
    rows, size, vocab, places = 75, 40, 9, 30
    seed = ops.draw_seed(device)
    ids = torch.randint(0, vocab, (rows,), device=device) if given == "input_ids" else None
    position_ids = torch.randint(0, places, (rows,), device=device)
    padding = {"padding_idx": 1, "position_padding_idx": 2}

    def kernel(words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.embedding_layer_norm(
            ids, position_ids, words if ids is not None else positions, positions, weight, bias, 1e-5,
            inputs_embeds=words if ids is None else None, dropout_p=p, seed=seed, site=3, backend="triton", **padding,
        )  # fmt: skip

    def oracle(words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        gathered = words if ids is None else F.embedding(ids, words, 1)
        return embedding.embedding_layer_norm_oracle(
            gathered, F.embedding(position_ids, positions, 2), weight, bias, 1e-5, p, seed, 3
        )

    inputs = [
        torch.randn(shape, device=device).to(dtype)
        for shape in ((vocab if ids is not None else rows, size), (places, size), size, size)
    ]
    found = assert_right(kernel, oracle, inputs, (rows, size))
    assert ids is None or (found[1][1] == 0).all()
    assert (found[2][2] == 0).all()


def test_ids_out_of_range_are_clamped(device: torch.device) -> None:
    """Packed values on a GPU are read by nobody before the kernel."""
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


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_segment_sum(device: torch.device, data: st.DataObject) -> None:
    runs = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3 * CHUNK)), min_size=1, max_size=6))
    ids = torch.cat([torch.full((count,), id) for id, count in runs])
    ids = ids[torch.randperm(len(ids))].to(device)
    padding = data.draw(st.integers(-1, 4))
    rows = torch.randn(len(ids), 24, device=device)
    found = segment_sum(rows, ids, 6, padding, torch.float32)
    assert error(found, segment_sum_oracle(rows.double(), ids, 6, padding)) < 1e-4
    assert torch.equal(found, segment_sum(rows, ids, 6, padding, torch.float32))
    assert padding < 0 or (found[padding] == 0).all()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999])
def test_masks_are_philox_bit_for_bit(p: float, device: torch.device) -> None:
    rows, size, site = 21, 77, 5
    seed = ops.draw_seed(device)
    expected = philox.keep_rows(seed.cpu(), site, 0, rows, size, p).to(device)
    drop: Any = {"dropout_p": p, "seed": seed, "site": site, "backend": "triton"}
    leaf = torch.full((rows, size), 30.0, device=device, requires_grad=True)  # gelu is the identity there
    y = ops.bias_gelu_dropout(leaf, **drop)
    assert torch.equal(y != 0, expected)
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(grad != 0, expected)
    product = torch.randn(rows, size, device=device, requires_grad=True)
    residual, vector = torch.randn(rows, size, device=device), torch.randn(size, device=device)
    y = ops.dropout_add_layer_norm(product, residual, vector, vector, 1e-5, **drop)
    z = layer_norm.dropout_add_layer_norm(product, residual, vector, vector, None, 1e-5, p, seed, site, True)[1]
    assert torch.equal(z != residual, expected)
    (grad,) = torch.autograd.grad(y, product, torch.randn_like(y))
    assert torch.equal(grad != 0, expected)
    ids, table = torch.arange(rows, device=device), torch.randn(rows, size, device=device, requires_grad=True)
    bias = torch.randn(size, device=device, requires_grad=True)
    y = ops.embedding_layer_norm(ids, ids, table, table.detach(), vector, bias, 1e-5, **drop)
    assert torch.equal(y != 0, expected)
    (grad,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    torch.testing.assert_close(grad, expected.sum(0) * philox.scale(p))


def test_vectors_need_not_be_contiguous(device: torch.device) -> None:
    x, wide = torch.randn(5, 24, device=device), torch.randn(24, 2, device=device)
    one, two = wide[:, 0], wide[:, 1]
    for run in (
        lambda x, one, two: ops.dropout_add_layer_norm(x, x, one, two, 1e-5, linear_bias=two, backend="triton"),
        lambda x, one, two: ops.bias_gelu_dropout(x, one, backend="triton"),
    ):
        assert torch.equal(run(x, one, two), run(x, one.contiguous(), two.contiguous()))


def test_frozen_weights_get_no_gradient(device: torch.device) -> None:
    """As with LoRA: the block passes gradients on and computes none that nobody asked for."""
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
    x, residual = (torch.randn(rows, 24, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(24, device=device, requires_grad=True) for _ in range(2))
    seed, ids = ops.draw_seed(device), torch.zeros(rows, dtype=torch.int64, device=device)
    table = torch.randn(3, 24, device=device, requires_grad=True)
    drop: Any = {"dropout_p": 0.2, "seed": seed, "backend": "triton"}
    block = [torch.randn(shape, device=device) for shape in ((8, 24), 8, (24, 8))]
    runs: list[Callable[[], Tensor]] = [
        lambda: ops.dropout_add_layer_norm(x, residual, weight, bias, 1e-5, linear_bias=bias, **drop),
        lambda: ops.bias_gelu_dropout(x, bias, **drop),
        lambda: ops.embedding_layer_norm(ids, ids, table, table, weight, bias, 1e-5, **drop),
        lambda: ops.mlp(x, *block, **drop),
    ]  # fmt: skip
    for run in runs:
        out = run()
        assert out.shape[0] == rows
        grads = torch.autograd.grad(out.sum(), [x, residual, weight, bias, table], allow_unused=True)
        assert all(grad is None or grad.isfinite().all() for grad in grads)
        assert rows or all(grad is None or (grad == 0).all() for grad in grads)


def test_runs_are_bitwise_equal(device: torch.device) -> None:
    rows = 70_000 if device.type == "cuda" else 70
    x, residual = (torch.randn(rows, 32, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(32, device=device, requires_grad=True) for _ in range(2))
    table = torch.randn(4, 32, device=device, requires_grad=True)
    seed, ids = ops.draw_seed(device), torch.randint(0, 4, (rows,), device=device)
    drop: Any = {"dropout_p": 0.2, "seed": seed, "backend": "triton"}
    grad = torch.randn(rows, 32, device=device)

    def run() -> list[Tensor]:
        y = ops.embedding_layer_norm(ids, ids, table, table, weight, bias, 1e-5, **drop) + x
        y = ops.bias_gelu_dropout(ops.dropout_add_layer_norm(y, residual, weight, bias, 1e-5, **drop), bias, **drop)
        return [y, *torch.autograd.grad(y, [x, residual, weight, bias, table], grad)]

    first = run()
    for _ in range(19 if device.type == "cuda" else 1):
        assert all(torch.equal(one, two) for one, two in zip(first, run(), strict=True))


@dropped
def test_gradcheck_of_the_oracles(p: float) -> None:
    seed = ops.draw_seed(torch.device("cpu"))

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    vectors = leaf(5), leaf(5)
    checks: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (
            lambda x, r, w, b, lb: layer_norm.dropout_add_layer_norm_oracle(x, r, w, b, lb, 1e-5, p, seed, 3),
            (leaf(3, 5), leaf(3, 5), *vectors, leaf(5)),
        ),
        (lambda x, b: activation.bias_gelu_dropout_oracle(x, b, p, seed, 3), (leaf(3, 5), leaf(5))),
        (
            lambda a, c, w, b: embedding.embedding_layer_norm_oracle(a, c, w, b, 1e-5, p, seed, 3),
            (leaf(3, 5), leaf(3, 5), *vectors),
        ),
        (lambda rows: segment_sum_oracle(rows, torch.tensor([0, 1, 0]), 3, 1), (leaf(3, 5),)),
    ]
    for oracle, inputs in checks:
        assert torch.autograd.gradcheck(oracle, inputs)
