"""Cross-attention masked language modelling: a sentence's masked tokens, from its translation alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Objective
from .rows import Batch, Pair, flat_batch, labels_of


class CAMLM(Objective):
    """Cross-attention masked LM of a translation pair (ERNIE-M, arXiv 2012.15674).

    A masked token of x is predicted from the context of y and from the masks of x, which tell positions; never from the
    context of x. For context C and masks M of the sentences x and y a pair becomes two packed sequences, `[Cy | Mx]`
    and `[Cx | My]`: tokens before the bar (`prefix_lens`) see those before it, tokens behind it see all. Each token
    keeps its position in the pair, and special tokens are context of their sentence. This is the one pattern that
    leaks nothing through any number of layers: if Mx saw My, it would see x through it, since My sees Cx. Chosen tokens
    always become [MASK]: a token that stayed would be its own answer. Where a sentence has no masks, the sequence that
    would predict it is left out.

    Samples are pairs.

    Args:
        language_markers: ids of tokens that tell a sentence's language and stand at its start. They go with its masks,
            without being predicted, so that those know what language they are to be: see `BTMLM`.
        options: those of `Objective`, but for `mask_share` and `random_share`.
    """

    reads = "pairs"

    def __init__(self, tokenizer: Any, *, language_markers: Sequence[int] = (), **options: Any) -> None:
        given = sorted(options.keys() & {"mask_share", "random_share"})
        if given:
            raise ValueError(f"{given[0]} must not be given: in CAMLM a chosen token always becomes [MASK]")
        super().__init__(tokenizer, mask_share=1.0, random_share=0.0, **options)
        self.language_markers = self.vocabulary.check_special("language_markers", language_markers)

    def batch(self, samples: Sequence[Pair], generator: np.random.Generator) -> Batch:
        rows = self.layout.pairs(samples)
        chosen = self.masking.choose(rows, self.vocabulary, generator)
        behind_bar = chosen | np.isin(rows.ids, self.language_markers)
        # Sequence 2 i + s predicts sentence s of pair i: its masks, and the other sentence's context.
        sequences = 2 * rows.samples + np.where(behind_bar, rows.sides, 1 - rows.sides)
        predicting = np.bincount(sequences[chosen], minlength=2 * rows.num_samples) > 0
        predicting[0] |= not predicting.any()
        order = np.argsort(2 * sequences + behind_bar, kind="stable")
        order = order[predicting[sequences[order]]]
        replaced = self.masking.replace(rows.ids, chosen, self.vocabulary, generator)
        lengths = np.bincount(sequences, minlength=len(predicting))
        prefix_lens = np.bincount(sequences[~behind_bar], minlength=len(predicting))
        return flat_batch(
            lengths[predicting],
            labels_of(rows.ids, chosen)[order],
            prefix_lens[predicting],
            input_ids=replaced[order],
            position_ids=rows.positions[order] + self.first_position,
        )
