"""How much an operation must do: FLOPs and bytes, whoever does it.

FLOPs are those of matrix products, two a multiply-add; elementwise work hides behind memory. Bytes are what must cross
the device's memory at least: each operand read once and each result written once, by one pass that fuses all it can.
Padding counts for nothing. Passes:

    forward             keeps nothing for backward
    backward            reads what forward kept
    forward+backward    both, and what forward writes in order to keep it

`tests/bench/test_work.py` holds every formula against a count by brute force.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .shapes import Sizes

STATISTIC = 4
"""Bytes of a statistic of a row (log-sum-exp, mean, rstd): float32."""
INDEX = 8
"""Bytes of an index: int64."""
FORWARD, BACKWARD, BOTH = PASSES = ("forward", "backward", "forward+backward")


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and bytes across memory."""

    flops: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def floor_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Seconds that it takes at least: the slower of the two ceilings."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


def _of(passes: str, forward: Work, kept_bytes: int, backward: Work) -> Work:
    """The work of a pass; `kept_bytes`: written by forward for backward alone."""
    if passes not in PASSES:
        raise ValueError(f"passes must be one of {', '.join(PASSES)}, got {passes!r}")
    if passes == FORWARD:
        return forward
    return backward if passes == BACKWARD else forward + Work(0, kept_bytes) + backward


def attention(lengths: Sequence[int], num_heads: int, head_dim: int, itemsize: int, passes: str = FORWARD) -> Work:
    """Two products forward; five backward, of which one computes the scores again. Keeps the log-sum-exp.

    Args:
        lengths: tokens of each sequence.
        num_heads, head_dim: of the layer.
        itemsize: bytes of an element of qkv, out and their gradients.
        passes: one of `PASSES`.
    """
    product = 2 * sum(length * length for length in lengths) * num_heads * head_dim
    rows = sum(lengths) * num_heads * head_dim * itemsize
    lse = sum(lengths) * num_heads * STATISTIC
    # qkv, out; then qkv, out, its gradient, and the gradient of qkv.
    return _of(passes, Work(2 * product, 4 * rows), lse, Work(5 * product, 8 * rows + lse))


def add_layer_norm(rows: int, size: int, itemsize: int, passes: str = FORWARD, dropout: bool = False) -> Work:
    """layer_norm(residual + dropout(x + linear_bias)). Keeps the sum, mean and rstd.

    Without dropout the gradients of x and residual are one tensor.
    """
    wide, vector, statistics = rows * size * itemsize, size * itemsize, 2 * rows * STATISTIC
    forward = Work(0, 3 * wide + 3 * vector)  # x, residual, y; weight, bias, linear_bias
    # y's gradient, the sum, weight; the gradients of x (and of residual) and of the three vectors.
    backward = Work(0, (4 if dropout else 3) * wide + 4 * vector + statistics)
    return _of(passes, forward, wide + statistics, backward)


def bias_gelu(rows: int, size: int, itemsize: int, passes: str = FORWARD) -> Work:
    """dropout(gelu(x + bias)). Keeps nothing but its operands."""
    wide, vector = rows * size * itemsize, size * itemsize
    # x, y, bias; then x, y's gradient, bias, and the gradients of x and bias.
    return _of(passes, Work(0, 2 * wide + vector), 0, Work(0, 3 * wide + 2 * vector))


def embedding_layer_norm(
    rows: int,
    words: int,
    positions: int,
    vocab_size: int,
    max_positions: int,
    size: int,
    itemsize: int,
    passes: str = FORWARD,
) -> Work:
    """dropout(layer_norm(word + position)). Gathers again in backward and keeps mean and rstd.

    Args:
        rows: tokens.
        words, positions: distinct rows of the tables that they name, each read once.
        vocab_size, max_positions: rows of the tables, whose gradients are dense and written whole.
        size: columns.
        itemsize: bytes of an element.
        passes: one of `PASSES`.
    """
    wide, vector, statistics = rows * size * itemsize, size * itemsize, 2 * rows * STATISTIC
    gathered = (words + positions) * vector + 2 * rows * INDEX
    tables = (vocab_size + max_positions) * vector
    backward = Work(0, wide + gathered + tables + 3 * vector + statistics)
    return _of(passes, Work(0, wide + gathered + 2 * vector), statistics, backward)


def linear(rows: int, size_in: int, size_out: int, itemsize: int, passes: str = FORWARD) -> Work:
    """A linear layer with bias; backward is the product with the weight and the one that is its gradient."""
    product = 2 * rows * size_in * size_out
    x, y, weight, bias = rows * size_in, rows * size_out, size_in * size_out, size_out
    # x, weight, bias, y; then x, weight, y's gradient, and the gradients of x, weight and bias.
    backward = Work(2 * product, (2 * x + 2 * weight + y + bias) * itemsize)
    return _of(passes, Work(product, (x + y + weight + bias) * itemsize), 0, backward)


def linear_gelu(rows: int, size_in: int, size_out: int, itemsize: int, passes: str = FORWARD) -> Work:
    """dropout(gelu(x weight^T + bias)). Keeps the product."""
    product = 2 * rows * size_in * size_out
    x, y, weight, bias = rows * size_in, rows * size_out, size_in * size_out, size_out
    # x, weight, bias, y; then x, weight, bias, the product, y's gradient, and the gradients of x, weight and bias.
    backward = Work(2 * product, 2 * (x + weight + bias + y) * itemsize)
    return _of(passes, Work(product, (x + y + weight + bias) * itemsize), y * itemsize, backward)


def _layer_products(rows: int, sizes: Sizes, itemsize: int, passes: str) -> list[Work]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    return [linear(rows, *shape, itemsize, passes) for shape in shapes]


def matrix_products(rows: int, sizes: Sizes, itemsize: int, passes: str = FORWARD) -> Work:
    """All linear layers of the encoder, q, k and v in one."""
    return sum(_layer_products(rows, sizes, itemsize, passes), Work(0, 0)) * sizes.num_layers


def encoder_parts(
    lengths: Sequence[int], sizes: Sizes, itemsize: int, passes: str = FORWARD, dropout: bool = False
) -> list[Work]:
    """The whole encoder, each of its parts one pass over memory. Every token counts as a word of its own."""
    rows, hidden = sum(lengths), sizes.hidden_size
    layer = [
        attention(lengths, sizes.num_heads, hidden // sizes.num_heads, itemsize, passes),
        *[add_layer_norm(rows, hidden, itemsize, passes, dropout)] * 2,
        bias_gelu(rows, sizes.intermediate_size, itemsize, passes),
        *_layer_products(rows, sizes, itemsize, passes),
    ]
    embedding = embedding_layer_norm(
        rows, min(rows, sizes.vocab_size), max(lengths), sizes.vocab_size, 514, hidden, itemsize, passes
    )
    return [embedding, *layer * sizes.num_layers]


def encoder(lengths: Sequence[int], sizes: Sizes, itemsize: int, passes: str = FORWARD, dropout: bool = False) -> Work:
    """All of it together."""
    return sum(encoder_parts(lengths, sizes, itemsize, passes, dropout), Work(0, 0))
