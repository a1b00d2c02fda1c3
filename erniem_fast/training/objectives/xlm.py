"""The three objectives of XLM (Conneau and Lample, arXiv 1901.07291), for `XLMWithLMHeadModel` after `padding_free`.

Sentences come with the id of their language, `config.lang2id` of the model; None where it has no language embeddings.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...losses import IGNORED
from .base import Objective
from .masked_lm import FullyVisible
from .rows import Batch, Rows, Sentence, flat_batch

Spoken = tuple[Sentence, int | None]
"""A sentence and the id of its language."""


def _langs(rows: Rows, languages: Sequence[Sequence[int | None]]) -> dict[str, np.ndarray]:
    """Language of each token, by the languages of each sample's sentences."""
    flat = [language for sample in languages for language in sample]
    if all(language is None for language in flat):
        return {}
    if any(language is None for language in flat):
        raise ValueError("samples must give the languages of all sentences or of none, got some that are None")
    return {"langs": np.array(languages)[rows.samples, rows.sides]}


class XLMMLM(FullyVisible):
    """Masked LM of sentences, each with its language: samples are `(sentence, language)`."""

    reads = "sentences"
    with_languages = True

    def batch(self, samples: Sequence[Spoken], generator: np.random.Generator) -> Batch:
        rows = self.layout.single([sentence for sentence, _ in samples])
        return self.predict(rows, generator, **_langs(rows, [[language] for _, language in samples]))


class XLMTLM(FullyVisible):
    """Translation LM: samples are `((sentence, language), (translation, its language))`.

    Both sentences have special tokens around them, and positions count anew from the second.
    """

    reads = "pairs"
    with_languages = True

    def batch(self, samples: Sequence[tuple[Spoken, Spoken]], generator: np.random.Generator) -> Batch:
        rows = self.layout.sentences_in_pairs([(first[0], second[0]) for first, second in samples])
        firsts = rows.count(rows.sides == 0)[rows.samples]
        rows = replace(rows, positions=rows.positions - np.where(rows.sides, firsts, 0))
        return self.predict(rows, generator, **_langs(rows, [[first[1], second[1]] for first, second in samples]))


class XLMCLM(Objective):
    """Causal LM: every token from those before it; for a model whose configuration says `causal=True`.

    Samples are `(sentence, language)`. Labels are the tokens one place on: transformers' XLM shifts none itself,
    whatever its documentation says.

    Args:
        tokenizer: as in `Objective`.
        max_length: likewise.
    """

    reads = "sentences"
    with_languages = True

    def __init__(self, tokenizer: Any, *, max_length: int | None = None) -> None:
        super().__init__(tokenizer, max_length=max_length)

    def batch(self, samples: Sequence[Spoken], generator: np.random.Generator) -> Batch:
        rows = self.layout.single([sentence for sentence, _ in samples])
        following = np.append(rows.ids[1:], IGNORED)
        is_last = np.diff(rows.samples, append=-1) != 0
        return flat_batch(
            np.bincount(rows.samples),
            np.where(is_last, IGNORED, following),
            input_ids=rows.ids,
            position_ids=rows.positions,
            **_langs(rows, [[language] for _, language in samples]),
        )
