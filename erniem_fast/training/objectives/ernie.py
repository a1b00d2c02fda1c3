"""The pre-training of BERT and ERNIE 1.0: masked words, and whether one sentence follows another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .masked_lm import FullyVisible
from .masking import WordStarts
from .rows import Batch, Pair


class MLMWithNSP(FullyVisible):
    """Masked LM of whole words, and next sentence prediction (BERT, arXiv 1810.04805; ERNIE 1.0, arXiv 1904.09223).

    For `BertForPreTraining` and `ErnieForPreTraining` after `padding_free`. Samples are pairs, a sentence and the one
    that follows it. Some of the second sentences are replaced by another sample's of the same batch. A batch also has
    token_type_ids (1, total_tokens) int64 and next_sentence_label (num_samples,) int64: 0 where the second sentence
    follows the first, 1 elsewhere.

    Args:
        whole_word: as in `Objective`. ERNIE 1.0 masks words, phrases and names, which in Chinese have several
            characters: for those a function, which tells where they start.
        random_probability: that a second sentence is replaced; a batch of one sample keeps its own.
        options: those of `Objective`.
    """

    reads = "pairs"

    def __init__(
        self, tokenizer: Any, *, whole_word: bool | WordStarts = True, random_probability: float = 0.5, **options: Any
    ) -> None:
        super().__init__(tokenizer, whole_word=whole_word, **options)
        if not 0 <= random_probability <= 1:
            raise ValueError(f"random_probability must lie between 0 and 1, got {random_probability}")
        self.random_probability = random_probability

    def batch(self, samples: Sequence[Pair], generator: np.random.Generator) -> Batch:
        number, own = len(samples), np.arange(len(samples))
        others = (own + 1 + generator.integers(max(number - 1, 1), size=number)) % number
        drawn = np.where(generator.random(number) < self.random_probability, others, own)
        pairs = [(first, samples[second][1]) for (first, _), second in zip(samples, drawn, strict=True)]
        is_other = [list(made[1]) != list(given[1]) for made, given in zip(pairs, samples, strict=True)]
        rows = self.layout.pairs(pairs)
        batch = self.predict(rows, generator, token_type_ids=rows.sides)
        return batch | {"next_sentence_label": torch.tensor(is_other, dtype=torch.int64)}
