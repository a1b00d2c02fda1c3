"""Texts to tokens, each alone and uncut, and rows for the model: what a tokenizer puts around a text, or a pair."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

TEXTS_PER_CALL = 256


class Row(NamedTuple):
    """A sequence on its way to the model.

    Attributes:
        ids: (length,) int32 token ids, special tokens included.
        types: (length,) int32 token types; None where all are 0, or the tokenizer or the model has none.
    """

    ids: np.ndarray
    types: np.ndarray | None = None


class Tokens(NamedTuple):
    """A text's tokens, without special ones.

    Attributes:
        text: the text.
        ids: (length,) int32.
        offsets: (length, 2) int32, first character and end of each token in the text.
    """

    text: str
    ids: np.ndarray
    offsets: np.ndarray


def tokenize_in_chunks(texts: Sequence[str], tokenizer: Any, **options: Any) -> Iterator[tuple[list[str], Any]]:
    """Tokenize texts, each alone and uncut.

    Args:
        texts: any number of texts.
        tokenizer: the model's tokenizer.
        options: further arguments of the tokenizer.

    Yields:
        Some of the texts, in order, and what the tokenizer gives for them.
    """
    for start in range(0, len(texts), TEXTS_PER_CALL):
        chunk = list(texts[start : start + TEXTS_PER_CALL])
        # verbose: the tokenizer would warn of long texts, which are cut or read in windows later.
        yield chunk, tokenizer(chunk, return_attention_mask=False, verbose=False, **options)


def ids_of(texts: Iterable[str], tokenizer: Any) -> dict[str, np.ndarray]:
    """(length,) int32 token ids of each different text, without special tokens."""
    chunks = tokenize_in_chunks(list(dict.fromkeys(texts)), tokenizer, add_special_tokens=False)
    return {
        text: np.array(ids, np.int32)
        for chunk, found in chunks
        for text, ids in zip(chunk, found["input_ids"], strict=True)
    }


def tokens_of(texts: Iterable[str], tokenizer: Any) -> dict[str, Tokens]:
    """Tokens of each different text, with their places in it; the tokenizer must give offsets."""
    chunks = tokenize_in_chunks(
        list(dict.fromkeys(texts)), tokenizer, add_special_tokens=False, return_offsets_mapping=True
    )
    return {
        text: Tokens(text, np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2))
        for chunk, found in chunks
        for text, ids, offsets in zip(chunk, found["input_ids"], found["offset_mapping"], strict=True)
    }


class Frame(NamedTuple):
    """What a tokenizer puts around one text, or around and between two.

    Attributes:
        specials: ids of the special tokens before, between and after the texts, one part more than there are texts.
        special_types: their token types, likewise; None where every token is of type 0.
        text_types: token type of each text's tokens.
    """

    specials: tuple[np.ndarray, ...]
    special_types: tuple[np.ndarray, ...] | None
    text_types: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, texts: tuple[str, ...]) -> "Frame":
        """Learn from what the tokenizer makes of these texts.

        Raises:
            ValueError: their own tokens are not among it, in order.
        """
        whole = tokenizer(*texts)
        ids = np.array(whole["input_ids"], np.int32)
        types = np.array(whole.get("token_type_ids", np.zeros_like(ids)), np.int32)
        cuts, start = [0], 0
        for text in texts:
            own = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
            places = range(start, len(ids) - len(own) + 1)
            start = next((place for place in places if np.array_equal(ids[place : place + len(own)], own)), -1)
            if start < 0 or not len(own):
                got = f"{ids.tolist()} for {', '.join(map(repr, texts))}"
                raise ValueError(f"tokenizer must put special tokens around a text's own, {own.tolist()}; got {got}")
            cuts += [start, start + len(own)]
            start += len(own)
        parts = [slice(*ends) for ends in zip(cuts[::2], [*cuts[1::2], len(ids)], strict=True)]
        return cls(
            tuple(ids[part] for part in parts),
            tuple(types[part] for part in parts) if types.any() else None,
            tuple(int(types[place]) for place in cuts[1::2]),
        )

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.specials))

    def row(self, *texts: np.ndarray) -> Row:
        """Put special tokens around texts, (length,) int32 ids each."""
        ids = [self.specials[0]]
        for text, part in zip(texts, self.specials[1:], strict=True):
            ids += [text, part]
        if self.special_types is None:
            return Row(np.concatenate(ids, dtype=np.int32))
        types = [self.special_types[0]]
        for text, kind, part in zip(texts, self.text_types, self.special_types[1:], strict=True):
            types += [np.full(len(text), kind, np.int32), part]
        return Row(np.concatenate(ids, dtype=np.int32), np.concatenate(types, dtype=np.int32))


class PairTemplate(NamedTuple):
    """How a tokenizer puts one text and two texts together, so that each text is tokenized once.

    Attributes:
        single: around one text.
        pair: around two.
        cuts_left: the beginning of a text that is too long is cut, not its end.
        odd_to_first: of a pair cut to an odd number of tokens the first text keeps one more than the second, as the
            tokenizers written in Python do; those written in Rust leave the shorter text one less.
    """

    single: Frame
    pair: Frame
    cuts_left: bool
    odd_to_first: bool

    @classmethod
    def of(cls, tokenizer: Any, takes_types: bool = True) -> "PairTemplate":
        """Learn from the tokenizer.

        Args:
            tokenizer: ours, or one of transformers, fast or slow.
            takes_types: False: the model has no use for token types.

        Raises:
            ValueError: the tokenizer puts texts together in another way.
        """
        single, pair = Frame.of(tokenizer, ("a",)), Frame.of(tokenizer, ("a", "b"))
        if not takes_types:
            single, pair = single._replace(special_types=None), pair._replace(special_types=None)
        return cls(
            single, pair, tokenizer.truncation_side == "left", not isinstance(tokenizer, PreTrainedTokenizerFast)
        )

    def cut(self, ids: np.ndarray, room: int) -> np.ndarray:
        """At most `room` of a text's tokens."""
        return ids[max(0, len(ids) - room) :] if self.cuts_left else ids[:room]

    def row(self, texts: Sequence[np.ndarray], max_tokens: int) -> Row:
        """One text or two between special tokens, cut to `max_tokens` as by truncation "longest_first"."""
        if len(texts) == 1:
            return self.single.row(self.cut(texts[0], max(max_tokens - self.single.size, 0)))
        first, second = texts
        rooms = self._share(len(first), len(second), max(max_tokens - self.pair.size, 0))
        return self.pair.row(self.cut(first, rooms[0]), self.cut(second, rooms[1]))

    def fits(self, texts: Sequence[np.ndarray], max_tokens: int) -> bool:
        """True if nothing of one text or two is cut."""
        frame = self.single if len(texts) == 1 else self.pair
        return sum(map(len, texts)) + frame.size <= max_tokens

    def _share(self, first: int, second: int, room: int) -> tuple[int, int]:
        """Tokens that each text of a pair keeps: the shorter one all, or half of the room."""
        if first + second <= room:
            return first, second
        half = (room + 1) // 2 if self.odd_to_first or first > second else room // 2
        kept = min(first, max(room - second, half))
        return kept, room - kept
