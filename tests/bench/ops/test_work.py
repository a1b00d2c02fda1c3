"""Formulas of bytes and FLOPs against counts by brute force."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.engine.shapes import BACKWARD, BOTH, FORWARD, PASSES
from bench.engine.work import Work
from bench.ops.activation import activation_work
from bench.ops.attention import attention_work
from bench.ops.embedding import embedding_work
from bench.ops.layer_norm import layer_norm_work
from bench.ops.linear import linear_work
from bench.ops.linear_cross_entropy import loss_work
from bench.ops.mlp import linear_gelu_work, mlp_work

LENGTHS = (3, 1, 5, 2)
ROWS = sum(LENGTHS)
ITEMSIZES = {torch.bfloat16: 2, torch.float32: 4}


def nbytes(*shapes: tuple[int, ...], dtype: torch.dtype) -> int:
    return sum(torch.empty(shape, dtype=dtype, device="meta").nbytes for shape in shapes)


def counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def multiply_adds(lengths: tuple[int, ...], heads: int, head_dim: int) -> int:
    """Of one product of attention, one by one."""
    total = 0
    for length in lengths:
        for _head in range(heads):
            for _row in range(length):
                for _column in range(length):
                    total += head_dim
    return total


@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_attention(dtype: torch.dtype) -> None:
    heads, head_dim = 2, 4
    product = 2 * multiply_adds(LENGTHS, heads, head_dim)
    forward, backward, both = (attention_work(LENGTHS, heads, head_dim, ITEMSIZES[dtype], p) for p in PASSES)
    assert (forward.flops, backward.flops, both.flops) == (2 * product, 5 * product, 7 * product)
    rows = (ROWS, heads, head_dim)
    lse = nbytes((heads, ROWS), dtype=torch.float32)
    assert forward.bytes == nbytes((ROWS, 3, heads, head_dim), rows, dtype=dtype)
    qkv = (ROWS, 3, heads, head_dim)
    assert backward.bytes == nbytes(qkv, rows, rows, qkv, dtype=dtype) + lse
    assert both.bytes == forward.bytes + lse + backward.bytes


def test_attention_flops_are_what_torch_counts() -> None:
    batch, heads, length, head_dim = 3, 2, 8, 4
    query, key, value = torch.randn(3, batch, heads, length, head_dim, requires_grad=True).unbind(0)

    def forward() -> torch.Tensor:
        return F.softmax(query @ key.transpose(-1, -2), -1) @ value

    amounts = {passes: attention_work((length,) * batch, heads, head_dim, 4, passes) for passes in PASSES}
    assert counted(forward) == amounts[FORWARD].flops
    # Plain PyTorch keeps the scores; a fused backward computes them again, which is one more product.
    again = amounts[FORWARD].flops // 2
    assert counted(lambda: forward().sum().backward()) == amounts[BOTH].flops - again


@pytest.mark.parametrize("dtype", ITEMSIZES)
@pytest.mark.parametrize("dropout", [False, True])
def test_add_layer_norm(dtype: torch.dtype, dropout: bool) -> None:
    size = 6
    forward, backward, both = (layer_norm_work(ROWS, size, ITEMSIZES[dtype], p, dropout) for p in PASSES)
    wide, vector = (ROWS, size), (size,)
    statistics = nbytes((ROWS,), (ROWS,), dtype=torch.float32)
    assert forward.bytes == nbytes(wide, wide, wide, vector, vector, vector, dtype=dtype)
    grads = [wide] * (2 if dropout else 1) + [vector] * 3
    assert backward.bytes == nbytes(wide, wide, vector, *grads, dtype=dtype) + statistics
    assert both.bytes == forward.bytes + nbytes(wide, dtype=dtype) + statistics + backward.bytes
    assert both.flops == 0


@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_bias_gelu(dtype: torch.dtype) -> None:
    size = 6
    forward, backward, both = (activation_work(ROWS, size, ITEMSIZES[dtype], p) for p in PASSES)
    wide, vector = (ROWS, size), (size,)
    assert forward.bytes == nbytes(wide, vector, wide, dtype=dtype)
    assert backward.bytes == nbytes(wide, vector, wide, wide, vector, dtype=dtype)
    assert both.bytes == forward.bytes + backward.bytes


@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_embedding_layer_norm(dtype: torch.dtype) -> None:
    ids = torch.tensor([5, 7, 5, 5, 9, 1, 1, 2, 3, 5, 7])
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    words, positions, size = len(set(ids.tolist())), len(set(places.tolist())), 6
    forward, backward, both = (
        embedding_work(len(ids), words, positions, 20, size, ITEMSIZES[dtype], p, max_positions=8) for p in PASSES
    )
    indices = ids.nbytes + places.nbytes
    read = nbytes((words, size), (positions, size), dtype=dtype) + indices
    vectors = [(size,), (size,)]
    assert forward.bytes == read + nbytes(*vectors, (ROWS, size), dtype=dtype)
    statistics = nbytes((ROWS,), (ROWS,), dtype=torch.float32)
    grads = [(20, size), (8, size), *vectors]
    assert backward.bytes == read + statistics + nbytes((ROWS, size), (size,), *grads, dtype=dtype)
    assert both.bytes == forward.bytes + statistics + backward.bytes


def test_linear() -> None:
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True), torch.randn(4)
    forward, backward, both = (linear_work(5, 3, 4, 4, p) for p in PASSES)
    assert counted(lambda: F.linear(x, weight, bias)) == forward.flops
    assert counted(lambda: F.linear(x, weight, bias).sum().backward()) == both.flops == 3 * forward.flops
    y = nbytes((5, 4), dtype=torch.float32)
    assert forward.bytes == x.nbytes + weight.nbytes + bias.nbytes + y
    # Read: x, weight, y's gradient. Written: the gradients of x, weight and bias.
    assert backward.bytes == (x.nbytes + weight.nbytes + y) + (x.nbytes + weight.nbytes + bias.nbytes)


def test_linear_gelu() -> None:
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True), torch.randn(4)
    forward, backward, both = (linear_gelu_work(5, 3, 4, 4, p) for p in PASSES)
    assert counted(lambda: F.gelu(F.linear(x, weight, bias))) == forward.flops
    assert counted(lambda: F.gelu(F.linear(x, weight, bias)).sum().backward()) == both.flops
    y, operands = nbytes((5, 4), dtype=torch.float32), x.nbytes + weight.nbytes + bias.nbytes
    assert forward.bytes == operands + y
    # Read: operands, the product, y's gradient. Written: gradients of the operands.
    assert backward.bytes == operands + y + y + operands
    assert both.bytes == forward.bytes + y + backward.bytes


def test_mlp_is_its_two_products_one_after_the_other() -> None:
    x, weight1, weight2 = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (8, 3), (3, 8)))
    bias = torch.randn(8)
    amounts = {passes: mlp_work(5, 3, 8, 4, passes) for passes in PASSES}

    def forward() -> torch.Tensor:
        return F.linear(F.gelu(F.linear(x, weight1, bias)), weight2)

    assert counted(forward) == amounts[FORWARD].flops
    assert counted(lambda: forward().sum().backward()) == amounts[BOTH].flops
    inner = nbytes((5, 8), dtype=torch.float32)
    operands = x.nbytes + weight1.nbytes + bias.nbytes + weight2.nbytes
    # The activation is written by the first product and read by the second one.
    assert amounts[FORWARD].bytes == operands + 2 * inner + x.nbytes
    second = 2 * (inner + weight2.nbytes) + x.nbytes
    first = 2 * (x.nbytes + weight1.nbytes + bias.nbytes + inner)
    assert amounts[BACKWARD].bytes == first + second


def test_the_floor_is_the_slower_ceiling() -> None:
    assert Work(100, 10).floor_s(10.0, 10.0) == 10.0
    assert Work(100, 1000).floor_s(10.0, 10.0) == 100.0
    with pytest.raises(ValueError, match="passes must be one of"):
        attention_work(LENGTHS, 2, 4, 2, "sideways")
    assert attention_work(LENGTHS, 2, 4, 2, BACKWARD) != attention_work(LENGTHS, 2, 4, 2, BOTH)


@pytest.mark.parametrize("dtype", ITEMSIZES)
def test_masked_lm_loss(dtype: torch.dtype) -> None:
    size, vocab = 6, 20
    x, weight = torch.randn(ROWS, size, requires_grad=True), torch.randn(vocab, size, requires_grad=True)
    targets = torch.randint(vocab, (ROWS,))

    def forward() -> torch.Tensor:
        return F.cross_entropy(F.linear(x, weight), targets)

    found, both = (loss_work(ROWS, size, vocab, ITEMSIZES[dtype], passes) for passes in (FORWARD, BOTH))
    assert counted(forward) == found.flops
    assert counted(lambda: forward().backward()) == both.flops
    operands = nbytes((ROWS, size), (vocab, size), dtype=dtype)
    assert found.bytes == operands + nbytes((vocab,), dtype=dtype) + nbytes((ROWS,), dtype=torch.int64)
    # The operands again, and their gradients, the bias's among them.
    assert both.bytes == found.bytes + 2 * operands + nbytes((vocab,), dtype=dtype)
