"""Back-translation masked language modelling: a sentence's tokens, from itself and what the model translates it to."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .base import Objective
from .rows import Batch, Rows, Sentence, flat_batch, labels_of


class BTMLM(Objective):
    """Back-translation masked LM (ERNIE-M, arXiv 2012.15674), for `ErnieMForPreTraining`.

    In two steps, both within the model's forward:

    1. Placeholders ([MASK]) are put behind the sentence, and the model predicts tokens there, without a gradient. The
       sequence is `[x | placeholders]`: x sees itself, the placeholders see x and each other. That is what `CAMLM`
       trains, with a second sentence that is all masks.
    2. The predicted tokens take the place of the second sentence of a pair. Tokens of x are masked, and predicted from
       everything.

    Samples are sentences.

    Args:
        placeholder_share: number of placeholders, as a share of the sentence's tokens; at least one is put.
        language_markers: ids of special tokens that tell the languages to translate to; one is drawn for each sentence
            and stands before its placeholders. Empty: nothing tells the placeholders their language. The paper marks it
            by language embeddings, which the released models do not have.
        temperature: of the softmax that predicted tokens are drawn from; 0: the likeliest token.
        options: those of `Objective`.
    """

    reads = "sentences"

    def __init__(
        self,
        tokenizer: Any,
        *,
        placeholder_share: float = 0.5,
        language_markers: Sequence[int] = (),
        temperature: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if not 0 < placeholder_share < math.inf:
            raise ValueError(f"placeholder_share must be greater than 0, got {placeholder_share}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 or greater, got {temperature}")
        self.placeholder_share, self.temperature = placeholder_share, temperature
        self.language_markers = self.vocabulary.check_special("language_markers", language_markers)

    def batch(self, samples: Sequence[Sentence], generator: np.random.Generator) -> Batch:
        rows = self._with_placeholders(samples, generator)
        is_source = rows.sides == 0
        is_placeholder = ~is_source & (rows.ids == self.vocabulary.mask_id)
        # The second sentence's special tokens see it and not the first: they are no part of step 1, as in CAMLM.
        kept = is_source | is_placeholder | (~is_source & np.isin(rows.ids, self.language_markers))
        positions = rows.positions + self.first_position
        inputs = flat_batch(
            rows.count(kept), prefix_lens=rows.count(is_source), input_ids=rows.ids[kept], position_ids=positions[kept]
        )
        chosen = self.masking.choose(rows, self.vocabulary, generator)
        batch = flat_batch(
            np.bincount(rows.samples),
            labels_of(rows.ids, chosen),
            input_ids=self.masking.replace(rows.ids, chosen, self.vocabulary, generator),
            position_ids=positions,
        )
        batch["generation"] = {
            "inputs": inputs,
            "rows": torch.from_numpy(np.flatnonzero(is_placeholder[kept])),
            "places": torch.from_numpy(np.flatnonzero(is_placeholder)),
            "excluded": torch.from_numpy(np.flatnonzero(self.vocabulary.is_special)),
            "temperature": self.temperature,
        }
        return batch

    def _with_placeholders(self, samples: Sequence[Sentence], generator: np.random.Generator) -> Rows:
        """Lay out pairs of a sentence and as many placeholders."""
        special = self.vocabulary.special_tokens
        room = self.layout.max_length - sum(map(len, special)) - bool(self.language_markers)
        most = int(room / (1 + self.placeholder_share))
        most -= most + self._num_placeholders(most) > room
        if most < 1:
            raise ValueError(
                f"max_length must leave room for a token and its placeholder, got {self.layout.max_length}"
            )
        pairs = []
        for sentence in samples:
            sentence = self.layout.shorten(sentence, most)
            marker = [int(generator.choice(self.language_markers))] if self.language_markers else []
            pairs.append((sentence, marker + [self.vocabulary.mask_id] * self._num_placeholders(len(sentence))))
        return self.layout.pairs(pairs)

    def _num_placeholders(self, length: int) -> int:
        return max(1, round(self.placeholder_share * length))
