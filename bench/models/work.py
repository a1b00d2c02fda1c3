"""Least work of the whole encoder, the sum of its operations'."""

from collections.abc import Sequence

from bench.engine.shapes import FORWARD, Sizes
from bench.engine.work import Work
from bench.ops.activation import activation_work
from bench.ops.attention import attention_work
from bench.ops.embedding import embedding_work
from bench.ops.layer_norm import layer_norm_work
from bench.ops.linear import linear_work


def _layer_products(rows: int, sizes: Sizes, itemsize: int, passes: str) -> list[Work]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    shapes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    return [linear_work(rows, *shape, itemsize, passes) for shape in shapes]


def products_work(rows: int, sizes: Sizes, itemsize: int, passes: str = FORWARD) -> Work:
    """Work of all linear layers, q, k and v in one."""
    return sum(_layer_products(rows, sizes, itemsize, passes), Work(0, 0)) * sizes.num_layers


def encoder_parts(
    lengths: Sequence[int], sizes: Sizes, itemsize: int, passes: str = FORWARD, dropout: bool = False
) -> list[Work]:
    """Work of the encoder, each of its parts one pass over memory. Every token counts as a word of its own."""
    rows, hidden = sum(lengths), sizes.hidden_size
    layer = [
        attention_work(lengths, sizes.num_heads, sizes.head_dim, itemsize, passes),
        *[layer_norm_work(rows, hidden, itemsize, passes, dropout)] * 2,
        activation_work(rows, sizes.intermediate_size, itemsize, passes),
        *_layer_products(rows, sizes, itemsize, passes),
    ]
    words = min(rows, sizes.vocab_size)
    embedding = embedding_work(rows, words, max(lengths), sizes.vocab_size, hidden, itemsize, passes)
    return [embedding, *layer * sizes.num_layers]


def encoder_work(
    lengths: Sequence[int], sizes: Sizes, itemsize: int, passes: str = FORWARD, dropout: bool = False
) -> Work:
    """Work of all parts together."""
    return sum(encoder_parts(lengths, sizes, itemsize, passes, dropout), Work(0, 0))
