"""The formulas of bytes and FLOPs against counts by brute force."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import work
from bench.shapes import Sizes
from bench.work import BACKWARD, BOTH, FORWARD, PASSES, Work
from erniem_fast import reference

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
    forward, backward, both = (work.attention(LENGTHS, heads, head_dim, ITEMSIZES[dtype], p) for p in PASSES)
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

    amounts = {passes: work.attention((length,) * batch, heads, head_dim, 4, passes) for passes in PASSES}
    assert counted(forward) == amounts[FORWARD].flops
    # Plain PyTorch keeps the scores; a fused backward computes them again, which is one more product.
    again = amounts[FORWARD].flops // 2
    assert counted(lambda: forward().sum().backward()) == amounts[BOTH].flops - again


@pytest.mark.parametrize("dtype", ITEMSIZES)
@pytest.mark.parametrize("dropout", [False, True])
def test_add_layer_norm(dtype: torch.dtype, dropout: bool) -> None:
    size = 6
    forward, backward, both = (work.add_layer_norm(ROWS, size, ITEMSIZES[dtype], p, dropout) for p in PASSES)
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
    forward, backward, both = (work.bias_gelu(ROWS, size, ITEMSIZES[dtype], p) for p in PASSES)
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
        work.embedding_layer_norm(len(ids), words, positions, 20, 8, size, ITEMSIZES[dtype], p) for p in PASSES
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
    forward, backward, both = (work.linear(5, 3, 4, 4, p) for p in PASSES)
    assert counted(lambda: F.linear(x, weight, bias)) == forward.flops
    assert counted(lambda: F.linear(x, weight, bias).sum().backward()) == both.flops == 3 * forward.flops
    y = nbytes((5, 4), dtype=torch.float32)
    assert forward.bytes == x.nbytes + weight.nbytes + bias.nbytes + y
    # Read: x, weight, y's gradient. Written: the gradients of x, weight and bias.
    assert backward.bytes == (x.nbytes + weight.nbytes + y) + (x.nbytes + weight.nbytes + bias.nbytes)


def test_linear_gelu() -> None:
    x, weight, bias = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True), torch.randn(4)
    forward, backward, both = (work.linear_gelu(5, 3, 4, 4, p) for p in PASSES)
    assert counted(lambda: F.gelu(F.linear(x, weight, bias))) == forward.flops
    assert counted(lambda: F.gelu(F.linear(x, weight, bias)).sum().backward()) == both.flops
    y, operands = nbytes((5, 4), dtype=torch.float32), x.nbytes + weight.nbytes + bias.nbytes
    assert forward.bytes == operands + y
    # Read: operands, the product, y's gradient. Written: gradients of the operands.
    assert backward.bytes == operands + y + y + operands
    assert both.bytes == forward.bytes + y + backward.bytes


@pytest.mark.parametrize("passes", [FORWARD, BOTH])
def test_encoder_flops_are_what_torch_counts_of_the_reference(passes: str) -> None:
    sizes, batch, length = Sizes(32, 4, 48, 50, 2), 3, 8
    model = reference.ErnieMModel(sizes.config(), add_pooling_layer=False).eval()
    ids = torch.randint(4, 50, (batch, length))

    def run() -> None:
        rows = model(input_ids=ids).last_hidden_state
        if passes == BOTH:
            rows.square().sum().backward()

    again = work.attention((length,) * batch, 4, 8, 4).flops // 2 * sizes.num_layers if passes == BOTH else 0
    assert counted(run) == work.encoder((length,) * batch, sizes, 4, passes).flops - again


def test_encoder_is_the_sum_of_its_parts() -> None:
    sizes = Sizes(32, 4, 48, 50, 3)
    parts = work.encoder_parts(LENGTHS, sizes, 2, BOTH, dropout=True)
    assert len(parts) == 1 + 3 * 8
    whole = work.encoder(LENGTHS, sizes, 2, BOTH, dropout=True)
    assert whole == Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))
    products = work.matrix_products(ROWS, sizes, 2, BOTH)
    attention = work.attention(LENGTHS, 4, 8, 2, BOTH) * 3
    assert whole.flops == products.flops + attention.flops
    assert products.bytes + attention.bytes < whole.bytes


def test_the_floor_is_the_slower_ceiling() -> None:
    assert Work(100, 10).floor_s(10.0, 10.0) == 10.0
    assert Work(100, 1000).floor_s(10.0, 10.0) == 100.0
    with pytest.raises(ValueError, match="passes must be one of"):
        work.attention(LENGTHS, 2, 4, 2, "sideways")
    assert work.attention(LENGTHS, 2, 4, 2, BACKWARD) != work.attention(LENGTHS, 2, 4, 2, BOTH)
