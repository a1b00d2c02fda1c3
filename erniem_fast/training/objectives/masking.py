"""Which tokens are masked, and what they become."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .rows import Rows
from .vocabulary import Vocabulary

WordStarts = Callable[[list[int]], Iterable[int]]
"""Places in a sentence's token ids where words start; what stands before the first is a word, too."""


@dataclass(frozen=True)
class Masking:
    """Choice of the tokens to predict.

    Attributes:
        probability: that a token, or a word, is chosen, each by itself.
        whole_word: choose words rather than tokens: those of `Vocabulary.word_bounds`, or those of a function.
        mask_share: share of the chosen tokens that become [MASK] (BERT, arXiv 1810.04805).
        random_share: share that become a random token; the others stay what they are.
    """

    probability: float = 0.15
    whole_word: bool | WordStarts = False
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        shares = {"mask_probability": self.probability, "mask_share": self.mask_share,
                  "random_share": self.random_share}  # fmt: skip
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share}")
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share and random_share must be at most 1 together, got {self.mask_share} and {self.random_share}"
            )

    def choose(self, rows: Rows, vocabulary: Vocabulary, generator: np.random.Generator) -> np.ndarray:
        """Choose tokens to predict, (total_tokens,) bool. Special tokens are never chosen."""
        special = vocabulary.is_special[rows.ids]
        if not self.whole_word:
            return (generator.random(len(rows.ids)) < self.probability) & ~special
        # A special token, or another sentence, ends the word before.
        bounds = special | rows.starts_sentence
        bounds[1:] |= special[:-1]
        if callable(self.whole_word):
            edges = np.flatnonzero(bounds)
            for begin, end in zip(edges, np.append(edges[1:], len(bounds)), strict=True):
                if not special[begin]:
                    bounds[begin + self._places(rows.ids[begin:end].tolist())] = True
        else:
            starts, ends = vocabulary.word_bounds
            bounds |= starts[rows.ids]
            bounds[1:] |= ends[rows.ids[:-1]]
        words = bounds.cumsum() - 1
        return (generator.random(words[-1] + 1) < self.probability)[words] & ~special

    def _places(self, sentence: list[int]) -> np.ndarray:
        """Places of a sentence where words start, by the function that was given."""
        assert callable(self.whole_word)
        places = np.array([*self.whole_word(sentence)], np.int64)
        if ((places < 0) | (places >= len(sentence))).any():
            raise ValueError(
                f"whole_word must give places in the sentence, of {len(sentence)} tokens, got {places.tolist()!r:.80}"
            )
        return places

    def replace(
        self, ids: np.ndarray, chosen: np.ndarray, vocabulary: Vocabulary, generator: np.random.Generator
    ) -> np.ndarray:
        """Put in the place of the chosen tokens what the model sees, (total_tokens,) ids to a new array of them."""
        places = np.flatnonzero(chosen)
        draws = generator.random(len(places))
        drawn = vocabulary.ordinary[generator.integers(len(vocabulary.ordinary), size=len(places))]
        kept = np.where(draws < self.mask_share + self.random_share, drawn, ids[places])
        replaced = ids.copy()
        replaced[places] = np.where(draws < self.mask_share, vocabulary.mask_id, kept)
        return replaced
