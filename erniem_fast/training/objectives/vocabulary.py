"""What the objectives read of a tokenizer: its special tokens, where they stand, and which tokens start a word."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

HAN_AND_KANA = (
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)  # fmt: skip
"""First and last code points of the blocks whose characters are words."""


class SpecialTokens(NamedTuple):
    """Special tokens of one row, in a sentence and in a pair.

    Attributes:
        start: before the first sentence.
        end: behind the first sentence, which they belong to.
        middle: before the second sentence, which they belong to; empty where one separator stands between the two.
        last: behind the second sentence.
    """

    start: list[int]
    end: list[int]
    middle: list[int]
    last: list[int]


class Vocabulary:
    """A tokenizer's ids.

    Args:
        tokenizer: any tokenizer of transformers with a mask token.

    Attributes:
        size: ids lie in [0, size).
        mask_id: of [MASK].
        is_special: (size,) bool, True for tokens that are neither masked nor drawn.
        ordinary: (num_ordinary,) int64, the other ids.

    Raises:
        ValueError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise ValueError(f"tokenizer must have a mask token, got {type(tokenizer).__name__} without one")
        self.tokenizer = tokenizer
        self.size: int = len(tokenizer)
        self.mask_id: int = tokenizer.mask_token_id
        self.is_special = np.zeros(self.size, bool)
        self.is_special[tokenizer.all_special_ids] = True
        self.ordinary = np.flatnonzero(~self.is_special)

    def check_special(self, name: str, ids: Sequence[int]) -> list[int]:
        """`ids`, if they are special tokens: others could be masked."""
        for token in ids:
            if not (0 <= token < self.size and self.is_special[token]):
                raise ValueError(f"{name} must hold ids of the tokenizer's special tokens, got {token}")
        return list(ids)

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Special tokens that the tokenizer puts around sentences."""
        start, (end,) = _around(self.tokenizer, 1)
        _, (middle, last) = _around(self.tokenizer, 2)
        # [SEP] [SEP] between a pair: one ends the first sentence, one starts the second.
        ends = end if middle[: len(end)] == end else middle
        return SpecialTokens(start, ends, middle[len(ends) :], last)

    @cached_property
    def word_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Two (size,) bool arrays: the token starts a word; the token ends a word.

        A piece of SentencePiece that begins with "▁" starts a word, one of byte-level BPE that begins with "Ġ", one of
        WordPiece that does not begin with "##", and one of XLM's BPE behind a piece that ends with "</w>". Han and
        Kana characters are words. Whatever else a tokenizer cuts off stays with the word before.
        """
        pieces = [piece or "" for piece in self.tokenizer.convert_ids_to_tokens(list(range(self.size)))]
        marker = max(("▁", "Ġ", "##"), key=lambda mark: sum(piece.startswith(mark) for piece in pieces))
        closed = [piece.endswith("</w>") for piece in pieces]
        if any(closed):
            starts, ends = [False] * self.size, closed
        else:
            starts = [piece.startswith(marker) != (marker == "##") for piece in pieces]
            ends = [False] * self.size
        bare = [piece.removeprefix(marker).removesuffix("</w>") for piece in pieces]
        starts = [start or is_character_word(text[:1]) for start, text in zip(starts, bare, strict=True)]
        ends = [end or is_character_word(text[-1:]) for end, text in zip(ends, bare, strict=True)]
        return np.array(starts), np.array(ends)


def is_character_word(character: str) -> bool:
    """True for a Han or Kana character, which is a word by itself; False for none."""
    return bool(character) and any(first <= ord(character) <= last for first, last in HAN_AND_KANA)


def _around(tokenizer: Any, sentences: int) -> tuple[list[int], list[list[int]]]:
    """Special tokens before the first of some sentences, and those behind each."""
    if hasattr(tokenizer, "build_inputs_with_special_tokens"):
        ids = tokenizer.build_inputs_with_special_tokens(*[[-1 - index] for index in range(sentences)])
        owners = [-1 - token if token < 0 else None for token in ids]
    else:  # tokenizers in Rust only take texts
        encoding = tokenizer(*["a"] * sentences)
        ids, owners = encoding["input_ids"], encoding.sequence_ids()
    around: list[list[int]] = [[] for _ in range(sentences + 1)]
    place = 0
    for token, owner in zip(ids, owners, strict=True):
        if owner is None:
            around[place].append(token)
        else:
            place = owner + 1
    return around[0], around[1:]
