"""What all objectives share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from .masking import Masking, WordStarts
from .rows import Batch, Layout
from .vocabulary import Vocabulary

MOST_TOKENS = 512
"""Tokens of a row, where the tokenizer does not say fewer: what ErnieM, BERT and XLM take."""


class Objective(ABC):
    """Makes a batch without padding of sentences, and the labels that the model learns to predict.

    The same samples and a generator in the same state give the same batch.

    Args:
        tokenizer: gives the special tokens and, with `whole_word`, what starts a word.
        mask_probability: that a token is chosen to be predicted, each by itself.
        whole_word: choose words rather than tokens: those of the tokenizer, or those whose first places in a sentence a
            function gives, such as a segmenter's for Chinese.
        mask_share: share of the chosen tokens that become [MASK].
        random_share: share that become a random token; the others stay.
        max_length: most tokens of a row, special tokens included; None: as the tokenizer says, and 512 at most. What is
            longer is cut and counted.
        first_position: position of a row's first token, `limits.first_position` of the encoder: 0 for ErnieM, BERT and
            XLM, 2 for XLM-R.

    Raises:
        ValueError: an option that can't be right.
    """

    reads: ClassVar[Literal["sentences", "pairs"]]
    """What it reads: sentences, or pairs of them."""
    with_languages: ClassVar[bool] = False
    """True if each sentence comes with the id of its language, as `(sentence, language)`."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        mask_probability: float = 0.15,
        whole_word: bool | WordStarts = False,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        max_length: int | None = None,
        first_position: int = 0,
    ) -> None:
        self.masking = Masking(mask_probability, whole_word, mask_share, random_share)
        self.vocabulary = Vocabulary(tokenizer)
        most = min(tokenizer.model_max_length, MOST_TOKENS) if max_length is None else max_length
        self.layout = Layout(self.vocabulary, most)
        self.first_position = first_position

    @property
    def num_cut_samples(self) -> int:
        """Samples that were longer than `max_length`."""
        return self.layout.cut[0]

    @property
    def num_cut_tokens(self) -> int:
        """Tokens of theirs that were cut off."""
        return self.layout.cut[1]

    def __call__(self, samples: Sequence[Any], generator: np.random.Generator) -> Batch:
        """Make a batch.

        Args:
            samples: lists of token ids without special tokens, or pairs of them, as `reads` of the class says.
            generator: of numpy, `np.random.default_rng(seed)`.

        Returns:
            Arguments of the model's forward, for flattened input: input_ids, position_ids and labels (1, total_tokens)
            int64, labels -100 but where a token is to be predicted; cu_seq_lens_q and cu_seq_lens_k
            (num_sequences + 1,) int32; max_length_q and max_length_k; and what the objective needs besides.

        Raises:
            TypeError: a sample that is something else.
            ValueError: no sample, or ids that the tokenizer doesn't have.
        """
        if not samples:
            raise ValueError("samples must hold at least one, got none")
        for index, sample in enumerate(samples):
            if not self._takes(sample):
                kind = "sentence, a list of token ids" if self.reads == "sentences" else "pair of lists of token ids"
                with_language = ", with the language of each sentence: (ids, language)" if self.with_languages else ""
                raise TypeError(f"samples[{index}] must be a {kind}{with_language}; got {sample!r:.80}")
        return self.batch(samples, generator)

    def _takes(self, sample: Any) -> bool:
        """True if a sample has the form that `reads` and `with_languages` say."""
        is_sentence = _is_spoken if self.with_languages else _is_sentence
        if self.reads == "sentences":
            return is_sentence(sample)
        return isinstance(sample, Sequence) and len(sample) == 2 and all(map(is_sentence, sample))

    @abstractmethod
    def batch(self, samples: Sequence[Any], generator: np.random.Generator) -> Batch:
        """Make a batch of samples, at least one."""


def _is_sentence(sample: Any) -> bool:
    if isinstance(sample, np.ndarray):
        return sample.ndim == 1 and sample.dtype.kind in "iu"
    return isinstance(sample, Sequence) and (not sample or isinstance(sample[0], int | np.integer))


def _is_spoken(sample: Any) -> bool:
    """True for a sentence and the id of its language, or None."""
    if not isinstance(sample, Sequence) or len(sample) != 2 or not _is_sentence(sample[0]):
        return False
    return sample[1] is None or isinstance(sample[1], int | np.integer)
