"""Linear layers of inference on a CPU, against plain formulas in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.closeness import FLOAT32, TIMES, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from erniem_fast import ops
from erniem_fast.ops import onednn, rows_cpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
drawn = settings(max_examples=10)
sizes = st.integers(1, 70)


@pytest.fixture(params=[True, False], ids=["oneDNN", "without"])
def with_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """With torch's private operation, and on a machine or a torch that lacks it."""
    if not request.param:
        monkeypatch.setattr(onednn, "linear", _missing)
    onednn.is_available.cache_clear()
    yield request.param
    onednn.is_available.cache_clear()


def _missing(*_: Any) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces of each size, and a last one that is filled."""
    monkeypatch.setattr(rows_cpu, "SIZES", (32, 16))
    monkeypatch.setattr(rows_cpu, "MLP_SIZES", dict.fromkeys(DTYPES, (16,)))
    monkeypatch.setattr(rows_cpu, "ROWS_OF_THREAD", 32)
    monkeypatch.setattr(rows_cpu, "ROWS_OF_ALL", 16)


def pack(*groups: list[Tensor]) -> None:
    """Pack weights in the dtypes that are."""
    for weights in groups:
        if onednn.is_available(weights[0].dtype):
            assert onednn.pack(weights)
            assert onednn.packed(weights) is not None


def assert_close(found: Tensor, expected: Tensor, plain: Tensor) -> None:
    """By the rules of the contract: float32 by itself, 16 bits beside plain PyTorch."""
    assert (found.shape, found.dtype) == (expected.shape, plain.dtype)
    scale = expected.abs().max().item()
    if found.dtype == torch.float32:
        assert error(found, expected) <= FLOAT32 * max(1.0, scale)
    else:
        assert error(found, expected) <= TIMES * error(plain, expected) + torch.finfo(found.dtype).eps / 2 * scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_feed_forward_block(dtype: torch.dtype, activation: str, with_onednn: bool) -> None:
    @drawn
    @given(rows=sizes, hidden=sizes, inner=sizes, biased=st.booleans(), added=st.booleans(), packed=st.booleans())
    def check(rows: int, hidden: int, inner: int, biased: bool, added: bool, packed: bool) -> None:
        x, weight1, bias1 = (torch.randn(*shape).to(dtype) for shape in ((rows, hidden), (inner, hidden), (inner,)))
        weight2, bias2, residual = torch.randn(hidden, inner), torch.randn(hidden), torch.randn(rows, hidden)
        bias = bias2.to(dtype) if biased else None
        operands: list[Any] = [x, weight1 / hidden**0.5, bias1, weight2.to(dtype) / inner**0.5, bias]
        operands = [operand if operand is None else operand.to(dtype) for operand in operands]
        beside = residual.to(dtype) if added else None
        if packed:
            pack([operands[1]], [operands[3]])

        def formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor | None) -> Tensor:
            out = F.linear(getattr(F, activation)(F.linear(x, w1, b1)), w2, b2)
            return out if beside is None else out + beside.to(out.dtype)

        expected = formula(*(operand if operand is None else operand.double() for operand in operands))
        with torch.inference_mode():
            assert rows_cpu.takes(*operands, beside)
            found = ops.mlp(*operands, activation=activation, residual=beside)
        assert_close(found, expected, formula(*operands))

    check()
    if not with_onednn:
        assert not onednn.is_available(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_layers(dtype: torch.dtype) -> None:
    @drawn
    @given(rows=sizes, inner=sizes, outer=sizes, biased=st.booleans(), layers=st.integers(1, 3), packed=st.booleans())
    def check(rows: int, inner: int, outer: int, biased: bool, layers: int, packed: bool) -> None:
        x, residual = torch.randn(rows, inner).to(dtype), torch.randn(rows, outer).to(dtype)
        weights = [(torch.randn(outer, inner) / inner**0.5).to(dtype) for _ in range(layers)]
        biases = [torch.randn(outer).to(dtype) if biased else None for _ in weights]
        if packed:
            pack(weights, weights[-1:])  # the first is in one group, unless it is the only one
        with torch.inference_mode():
            side_by_side = rows_cpu.linear(x, weights, biases)
            added = ops.add_linear(x, weights[0], biases[0], residual)
            plain = ops.add_linear(x, weights[0], biases[0])
        wide = [None if bias is None else bias.double() for bias in biases]
        for index, weight in enumerate(weights):
            expected = F.linear(x.double(), weight.double(), wide[index])
            assert_close(side_by_side[:, index], expected, F.linear(x, weight, biases[index]))
        assert_close(plain, F.linear(x.double(), weights[0].double(), wide[0]), F.linear(x, weights[0], biases[0]))
        expected = F.linear(x.double(), weights[0].double(), wide[0]) + residual.double()
        assert_close(added, expected, F.linear(x, weights[0], biases[0]) + residual)

    check()


def operands() -> list[Tensor]:
    return [torch.randn(*shape) for shape in ((5, 6), (8, 6), (8,), (6, 8), (6,))]


def test_float64_and_gradients_are_computed_as_before() -> None:
    """To the bit: what trains does not change."""
    for dtype in (torch.float32, torch.float64):
        x, weight1, bias1, weight2, bias2 = (operand.to(dtype) for operand in operands())
        with torch.set_grad_enabled(dtype == torch.float32):
            assert not rows_cpu.takes(x, weight1)
            found = ops.mlp(x, weight1, bias1, weight2, bias2, residual=x)
            expected = x + F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
        assert torch.equal(found, expected)


@torch.no_grad()
def test_modes_see_the_operations_that_they_wait_for() -> None:
    """As flop counters and batch invariance do."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    x, weight1, bias1, weight2, bias2 = operands()
    expected = ops.mlp(x, weight1, bias1, weight2, bias2)
    with Watch():
        found = ops.mlp(x, weight1, bias1, weight2, bias2)
    torch.testing.assert_close(found, expected)
    assert seen.count(F.linear) == 2


@torch.no_grad()
def test_weights_that_are_not_contiguous() -> None:
    x, weight1, bias1, weight2, bias2 = operands()
    turned = weight1.t().contiguous().t()
    assert rows_cpu.takes(x, weight1)
    assert not rows_cpu.takes(x, turned)
    torch.testing.assert_close(ops.mlp(x, turned, bias1, weight2, bias2), ops.mlp(x, weight1, bias1, weight2, bias2))


@pytest.mark.filterwarnings("ignore:.*TracerWarning|.*torch.jit.trace|Converting a tensor")
@torch.no_grad()
def test_what_looks_at_more_than_values_sees_plain_operations() -> None:
    x, weight1, bias1, weight2, bias2 = block = operands()
    expected = ops.mlp(*block, residual=x)

    def run(x: Tensor) -> Tensor:
        return ops.mlp(x, weight1, bias1, weight2, bias2, residual=x)

    torch.testing.assert_close(torch.func.vmap(run)(x[None])[0], expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    _, wanted = torch.func.jvp(lambda x: x + F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2), (x,),
                               (torch.ones_like(x),))  # fmt: skip
    torch.testing.assert_close(tangent, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert not rows_cpu.takes(x, weight1)
        assert F.linear(x, weight1).dtype == torch.bfloat16
        torch.testing.assert_close(run(x), expected, rtol=0.02, atol=0.1)
    traced = torch.jit.trace(run, (x,))
    torch.testing.assert_close(traced(2 * x), run(2 * x))
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(x), expected)


def test_a_wrong_result_of_the_private_operation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
        product = F.linear(x, weight.to_dense() if weight.is_mkldnn else weight, bias)
        return product if activation == "none" else F.gelu(product)  # as "relu", too

    monkeypatch.setattr(onednn, "linear", wrong)
    onednn.is_available.cache_clear()
    assert not any(map(onednn.is_available, DTYPES))
    onednn.is_available.cache_clear()


@torch.no_grad()
def test_numbers_of_rows_that_onednn_compiles_for_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    real = rows_cpu._multiply

    def counted(x: Tensor, *arguments: Any) -> None:
        seen.add(len(x))
        real(x, *arguments)

    monkeypatch.setattr(rows_cpu, "SIZES", (2048, 512))
    monkeypatch.setattr(rows_cpu, "MLP_SIZES", dict.fromkeys(DTYPES, (512,)))
    monkeypatch.setattr(rows_cpu, "_multiply", counted)
    monkeypatch.setattr(rows_cpu, "ROWS_OF_THREAD", 640)
    monkeypatch.setattr(rows_cpu, "ROWS_OF_ALL", 192)
    weight, bias = torch.randn(8, 4).bfloat16(), torch.randn(8).bfloat16()
    for rows in torch.randint(1, 9000, (200,)).tolist():
        x = torch.randn(rows, 4).bfloat16()
        ops.add_linear(x, weight, bias, ops.add_linear(x, weight))
        ops.mlp(x, weight, bias, weight.t().contiguous())
    assert len(seen) <= 20
    assert all(rows % 16 == 0 for rows in seen)


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_pieces_for_packed_weights_are_of_few_sizes_and_even(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn.is_available(torch.bfloat16):
        pytest.skip("oneDNN's private operations are missing here")
    pieces: list[int] = []
    real = onednn.linear

    def counted(x: Tensor, *arguments: Any) -> Tensor:
        pieces.append(len(x))
        return real(x, *arguments)

    monkeypatch.setattr(rows_cpu, "ROWS_OF_THREAD", 640)
    monkeypatch.setattr(rows_cpu, "ROWS_OF_ALL", 192)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(onednn, "linear", counted)
    most = 640 if threads == 1 else 384
    weight, seen = torch.randn(8, 4).bfloat16(), set()
    pack([weight])
    for rows in torch.randint(1, 9000, (200,)).tolist():
        pieces.clear()
        assert len(ops.add_linear(torch.randn(rows, 4).bfloat16(), weight)) == rows
        assert sum(pieces) < rows + 32
        assert len(pieces) <= -(-rows // most)
        assert max(pieces) <= most
        seen |= set(pieces)
    assert len(seen) <= most / 32 + 2


@torch.no_grad()
def test_a_residual_of_another_shape_is_refused() -> None:
    layer = nn.Linear(6, 8)
    with pytest.raises(ValueError, match=r"residual must have shape \(5, 8\)"):
        ops.add_linear(torch.randn(5, 6), layer.weight, layer.bias, torch.randn(5, 6))
    with pytest.raises(ValueError, match=r"residual must have shape \(5, 6\)"):
        ops.mlp(*operands(), residual=torch.randn(5, 8))
