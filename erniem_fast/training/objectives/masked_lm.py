"""Masked language modelling in which every token sees all others: MMLM of a sentence, TLM of a translation pair."""

from collections.abc import Sequence

import numpy as np

from .base import Objective
from .rows import Batch, Pair, Rows, Sentence, flat_batch, labels_of


class FullyVisible(Objective):
    """Objective in which every token sees all of its sample."""

    def predict(self, rows: Rows, generator: np.random.Generator, **tokens: np.ndarray) -> Batch:
        """Mask tokens of rows; `tokens` are further (total_tokens,) ids for the model, or other position_ids."""
        chosen = self.masking.choose(rows, self.vocabulary, generator)
        return flat_batch(
            np.bincount(rows.samples),
            labels_of(rows.ids, chosen),
            input_ids=self.masking.replace(rows.ids, chosen, self.vocabulary, generator),
            **({"position_ids": rows.positions + self.first_position} | tokens),
        )


class MMLM(FullyVisible):
    """Multilingual masked LM: tokens of a sentence, from the rest of the sentence (ERNIE-M, arXiv 2012.15674).

    Samples are sentences.
    """

    reads = "sentences"

    def batch(self, samples: Sequence[Sentence], generator: np.random.Generator) -> Batch:
        return self.predict(self.layout.single(samples), generator)


class TLM(FullyVisible):
    """Translation LM: tokens of both sentences, from the rest of both (Conneau and Lample, arXiv 1901.07291).

    Samples are pairs. Positions count on from the first sentence to the second, as the tokenizer lays out a pair.
    """

    reads = "pairs"

    def batch(self, samples: Sequence[Pair], generator: np.random.Generator) -> Batch:
        return self.predict(self.layout.pairs(samples), generator)
