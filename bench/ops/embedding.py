"""Benchmark of dropout(layer_norm(words[ids] + positions[ids]))."""

import torch.nn.functional as F
from torch import Tensor

from bench.engine.registry import OURS, Benchmark, Prepared
from bench.engine.shapes import FORWARD, MAX_POSITIONS
from bench.engine.work import INDEX, STATISTIC, Work, work_of
from erniem_fast import ops

from .inputs import EPS, ROW_SHAPES, TINY_SHAPE, VARIANTS, Compute, OpInputs, add_unfused


class EmbeddingInputs(OpInputs):
    """Operands of the embedding.

    Leaves: words (vocab_size, hidden_size), positions (514, hidden_size), weight, bias (hidden_size,).
    """

    def operands(self) -> tuple[Tensor, ...]:
        size, randn = self.sizes.hidden_size, self.setting.randn
        return randn(self.sizes.vocab_size, size), randn(MAX_POSITIONS, size), randn(size), randn(size)

    def ids(self) -> tuple[Tensor, Tensor]:
        """Word ids and position ids (total_tokens,)."""
        packed = self.batch.packed
        assert packed.input_ids is not None
        return packed.input_ids, packed.position_ids

    def formula(self, *leaves: Tensor, dropout_p: float) -> Tensor:
        words, positions, weight, bias = leaves
        word_ids, position_ids = self.ids()
        rows = F.embedding(word_ids, words) + F.embedding(position_ids, positions)
        return self.drop(F.layer_norm(rows, weight.shape, weight, bias, EPS), dropout_p)

    def least_work(self) -> Work:
        sizes, words = self.sizes, len(self.ids()[0].unique())
        return embedding_work(
            self.tokens, words, max(self.lengths), sizes.vocab_size, sizes.hidden_size, self.setting.itemsize,
            self.setting.passes,
        )  # fmt: skip


def embedding_work(
    rows: int,
    words: int,
    positions: int,
    vocab_size: int,
    size: int,
    itemsize: int,
    passes: str = FORWARD,
    max_positions: int = MAX_POSITIONS,
) -> Work:
    """Work of both tables and the layer-norm. Gathers again in backward and keeps mean and rstd.

    Args:
        rows: number of tokens.
        words, positions: distinct rows of the tables that are named, each read once.
        vocab_size, max_positions: rows of the tables, whose gradients are dense and written whole.
        size: columns.
        itemsize: bytes of an element.
        passes: one of PASSES.
    """
    wide, vector, statistics = rows * size * itemsize, size * itemsize, 2 * rows * STATISTIC
    gathered = (words + positions) * vector + 2 * rows * INDEX
    tables = (vocab_size + max_positions) * vector
    backward = Work(0, wide + gathered + tables + 3 * vector + statistics)
    return work_of(passes, Work(0, wide + gathered + 2 * vector), statistics, backward)


EMBEDDING = Benchmark("embedding+layer-norm", EmbeddingInputs, ROW_SHAPES, (TINY_SHAPE,), VARIANTS)


@EMBEDDING.provider(OURS)
def _(inputs: EmbeddingInputs) -> Prepared:
    word_ids, position_ids = inputs.ids()

    def make(p: float) -> Compute:
        return lambda words, positions, weight, bias: ops.embedding_layer_norm(
            word_ids,
            position_ids,
            words,
            positions,
            weight,
            bias,
            EPS,
            dropout=inputs.dropout(p),
            backend=inputs.backend,
        )

    return inputs.prepare(make, same_mask=True)


def embedding_chain(
    words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor, word_ids: Tensor, position_ids: Tensor, p: float
) -> Tensor:
    rows = F.embedding(word_ids, words) + F.embedding(position_ids, positions)
    return F.dropout(F.layer_norm(rows, weight.shape, weight, bias, EPS), p)


add_unfused(EMBEDDING, embedding_chain, ((), (), (), (), (0,), (0,)), EmbeddingInputs.ids)
