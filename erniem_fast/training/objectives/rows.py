"""Sentences with their special tokens, end to end, and the batch that a model takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...losses import IGNORED
from .vocabulary import SpecialTokens, Vocabulary

Sentence = Sequence[int]
"""Token ids of a sentence, without special tokens."""
Pair = tuple[Sentence, Sentence]
"""A sentence and its translation, or the one that follows it."""
Batch = dict[str, Any]
"""Arguments of a model's forward: tensors and ints."""


@dataclass(frozen=True)
class Rows:
    """Tokens of samples, end to end, special tokens included: (total_tokens,) int64 arrays.

    Attributes:
        ids: of the tokens.
        samples: index of each token's sample.
        sides: 0 in the first sentence of a sample and 1 in the second, special tokens included.
        positions: place of each token in its sample.
    """

    ids: np.ndarray
    samples: np.ndarray
    sides: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sequence[Sequence[int]]]) -> "Rows":
        """Lay out samples, each of as many sentences, which have their special tokens already."""
        lengths = np.array([[len(side) for side in sample] for sample in samples])
        totals = lengths.sum(1)
        total = int(totals.sum())
        ids = np.fromiter(chain.from_iterable(chain.from_iterable(samples)), np.int64, total)
        sides = np.repeat(np.tile(np.arange(lengths.shape[1]), len(lengths)), lengths.ravel())
        positions = np.arange(total) - np.repeat(totals.cumsum() - totals, totals)
        return cls(ids, np.repeat(np.arange(len(totals)), totals), sides, positions)

    @property
    def num_samples(self) -> int:
        return int(self.samples[-1]) + 1

    @property
    def starts_sentence(self) -> np.ndarray:
        """(total_tokens,) bool, True at the first token of each side of a sample."""
        keys = self.samples * 2 + self.sides
        return np.diff(keys, prepend=-1) != 0

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """Number of chosen tokens in each sample, (num_samples,)."""
        return np.bincount(self.samples[chosen], minlength=self.num_samples)


@dataclass(frozen=True)
class Layout:
    """Puts special tokens around sentences, and cuts what is too long.

    Attributes:
        vocabulary: of the tokenizer.
        max_length: most tokens of a row, special tokens included.
        cut: [samples that were cut, tokens that were cut off], counted since the start.
    """

    vocabulary: Vocabulary
    max_length: int
    cut: list[int] = field(default_factory=lambda: [0, 0])

    def single(self, sentences: Sequence[Sentence]) -> Rows:
        """Lay out `[CLS] A [SEP]`."""
        special = self.vocabulary.special_tokens
        room = self._room(special.start, special.end)
        return self._checked(
            [[[*special.start, *self.shorten(sentence, room), *special.end]] for sentence in sentences]
        )

    def pairs(self, pairs: Sequence[Pair]) -> Rows:
        """Lay out `[CLS] A [SEP] [SEP] B [SEP]`, or what else the tokenizer makes of a pair."""
        return self._pairs(pairs, self.vocabulary.special_tokens)

    def sentences_in_pairs(self, pairs: Sequence[Pair]) -> Rows:
        """Lay out `[CLS] A [SEP] [CLS] B [SEP]`: the special tokens of a sentence around each."""
        start, end, *_ = self.vocabulary.special_tokens
        return self._pairs(pairs, SpecialTokens(start, end, start, end))

    def _pairs(self, pairs: Sequence[Pair], special: SpecialTokens) -> Rows:
        room = self._room(*special)
        laid = []
        for first, second in pairs:
            first, second = self._shorten_pair(first, second, room)
            laid.append([[*special.start, *first, *special.end], [*special.middle, *second, *special.last]])
        return self._checked(laid)

    def shorten(self, sentence: Sentence, room: int) -> Sentence:
        """The first `room` tokens of a sentence; the others are counted."""
        over = len(sentence) - room
        if over > 0:
            self.cut[0] += 1
            self.cut[1] += over
        return sentence[:room] if over > 0 else sentence

    def _shorten_pair(self, first: Sentence, second: Sentence, room: int) -> Pair:
        """Cut the longer of two sentences, then both to the same length, until they fit."""
        over = len(first) + len(second) - room
        if over <= 0:
            return first, second
        self.cut[0] += 1
        self.cut[1] += over
        most = max(room - min(len(first), len(second)), (room + 1) // 2)
        first = first[:most]
        return first, second[: min(most, room - len(first))]

    def _room(self, *special: Sequence[int]) -> int:
        """Tokens of sentences in a row."""
        room = self.max_length - sum(map(len, special))
        if room < 1:
            raise ValueError(f"max_length must leave room for a token beside the special ones, got {self.max_length}")
        return room

    def _checked(self, samples: Sequence[Sequence[Sequence[int]]]) -> Rows:
        rows = Rows.of(samples)
        wrong = (rows.ids < 0) | (rows.ids >= self.vocabulary.size)
        if wrong.any():
            first = int(wrong.argmax())
            raise ValueError(
                f"samples[{rows.samples[first]}] must hold ids of the tokenizer, in [0, {self.vocabulary.size}), "
                f"got {rows.ids[first]}"
            )
        return rows


def labels_of(ids: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Labels of the chosen tokens, and -100 elsewhere."""
    return np.where(chosen, ids, IGNORED)


def flat_batch(
    lengths: np.ndarray, labels: np.ndarray | None = None, prefix_lens: np.ndarray | None = None, **tokens: np.ndarray
) -> Batch:
    """Arguments of a forward.

    Args:
        lengths: (num_sequences,), tokens of each.
        labels: (total_tokens,), or None.
        prefix_lens: (num_sequences,), or None.
        tokens: further (total_tokens,) ids: input_ids, position_ids and what else the model reads.
    """
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = torch.from_numpy(lengths.cumsum())
    longest = int(lengths.max())
    flat: Batch = {name: _row(ids) for name, ids in tokens.items()}
    if labels is not None:
        flat["labels"] = _row(labels)
    if prefix_lens is not None:
        flat["prefix_lens"] = torch.from_numpy(prefix_lens.astype(np.int32))
    return flat | {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}


def _row(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64))[None]
