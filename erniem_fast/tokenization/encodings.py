"""Rows of a batch: windows of texts, framed with special tokens and padded, and what each token is. Needs no torch.

A row is `[CLS] A [SEP]`, or `[CLS] A [SEP] [SEP] B [SEP]` for a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any, TypeVar, overload

import numpy as np

from .alignment import Span
from .segmentation import Ids, Segments
from .windows import Windows

T = TypeVar("T")


def frame(first: list[T], second: list[T] | None, cls: T, sep: T) -> list[T]:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] [SEP] B [SEP]`, of ids or of anything else that each token has."""
    return [cls, *first, sep] if second is None else [cls, *first, sep, sep, *second, sep]


class Encoding:
    """One row, in the words of `tokenizers.Encoding`; each list has the row's length, and is made when asked for.

    Args:
        rows: the batch.
        row: number of the row.
    """

    def __init__(self, rows: "Encodings", row: int) -> None:
        self._rows = rows
        self._row = row

    @cached_property
    def ids(self) -> list[int]:
        """Token ids."""
        return self._rows.of_row("ids", self._row)

    @cached_property
    def type_ids(self) -> list[int]:
        """0 for `[CLS] A [SEP]`; of a pair 0 for `[CLS] A` and 1 for `[SEP] [SEP] B [SEP]`."""
        return self._rows.of_row("type_ids", self._row)

    @cached_property
    def attention_mask(self) -> list[int]:
        """0 for padding, 1 for other tokens."""
        return self._rows.of_row("attention_mask", self._row)

    @cached_property
    def special_tokens_mask(self) -> list[int]:
        """1 for special tokens and padding, 0 for a text's tokens, also if it contains special ones."""
        return self._rows.of_row("special_tokens_mask", self._row)

    @cached_property
    def tokens(self) -> list[str]:
        """Text of each token, "▁" for the space before it; that of [UNK] is what it stands for."""
        return self._rows.of_row("tokens", self._row)

    @cached_property
    def offsets(self) -> list[Span]:
        """Characters `[start, end)` of the caller's string, or word; (0, 0) of special tokens and padding."""
        return self._rows.of_row("offsets", self._row)

    @cached_property
    def word_ids(self) -> list[int | None]:
        """Number of the caller's word, or of that between white space; None of special tokens and padding."""
        return self._rows.of_row("word_ids", self._row)

    @cached_property
    def sequence_ids(self) -> list[int | None]:
        """0 for a text's tokens, 1 for those of a pair's second text, None for special tokens and padding."""
        return self._rows.of_row("sequence_ids", self._row)

    @cached_property
    def n_sequences(self) -> int:
        """1, or 2 for a pair."""
        return 2 if self._rows.is_pair(self._row) else 1

    @cached_property
    def overflowing(self) -> list["Encoding"]:
        """The text's other windows, of its first one and if windows were asked for."""
        return self._rows.others(self._row)

    def __getstate__(self) -> dict[str, Any]:
        # Its lists: a copy in another process needs no tokenizer.
        names = (name for name, value in vars(type(self)).items() if isinstance(value, cached_property))
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Encoding({len(self)} tokens)"

    @property
    def words(self) -> list[int | None]:
        """The older name of `word_ids`."""
        return self.word_ids

    def token_to_sequence(self, token: int) -> int | None:
        """0 or 1, the text of a token; None of special tokens."""
        return self.sequence_ids[token] if 0 <= token < len(self) else None

    def token_to_word(self, token: int) -> int | None:
        """Number of a token's word."""
        return self.word_ids[token] if 0 <= token < len(self) else None

    def token_to_chars(self, token: int) -> Span | None:
        """Characters of a token; None of special tokens."""
        return None if self.token_to_sequence(token) is None else self.offsets[token]

    def char_to_token(self, char: int, sequence: int = 0) -> int | None:
        """First token that a character is in; None for white space and what is not in the row."""
        spans = zip(self.offsets, self.sequence_ids, strict=True)
        return next((i for i, ((a, b), text) in enumerate(spans) if text == sequence and a <= char < b), None)

    def char_to_word(self, char: int, sequence: int = 0) -> int | None:
        """Number of the word that a character is in."""
        token = self.char_to_token(char, sequence)
        return None if token is None else self.word_ids[token]

    def word_to_tokens(self, word: int, sequence: int = 0) -> Span | None:
        """Tokens `[start, end)` of a word; None if it has none in the row."""
        pairs = zip(self.word_ids, self.sequence_ids, strict=True)
        found = [i for i, pair in enumerate(pairs) if pair == (word, sequence)]
        return (found[0], found[-1] + 1) if found else None

    def word_to_chars(self, word: int, sequence: int = 0) -> Span | None:
        """Characters of a word; None if it has none in the row."""
        tokens = self.word_to_tokens(word, sequence)
        return None if tokens is None else (self.offsets[tokens[0]][0], self.offsets[tokens[1] - 1][1])


@dataclass(frozen=True)
class Frame:
    """What rows are framed and padded with.

    Attributes:
        cls, sep, pad: id and text of [CLS], [SEP] and [PAD].
        pad_type: token type of padding.
        special: rows have special tokens.
        width: tokens that rows are padded to; None: to those of the longest.
        multiple: of which the width is a multiple.
        side: "right" or "left", where rows are padded.
    """

    cls: tuple[int, str]
    sep: tuple[int, str]
    pad: tuple[int, str]
    pad_type: int
    special: bool
    width: int | None = 0
    multiple: int = 1
    side: str = "right"


LEFT, CLS, FIRST, SEP, SECOND, END, RIGHT, MIDDLE = range(8)
"""Kinds of a row's tokens, in their order: padding, [CLS], A, [SEP], B, the [SEP] after B, padding.

MIDDLE stands for SEP in pairs: two [SEP]s.
"""


class Encodings(Sequence[Encoding]):
    """The rows of a batch; each `Encoding` is made when it is asked for.

    Args:
        segments: tokens of the texts.
        windows: those of each row.
        frame: special tokens and padding.

    Attributes:
        lengths: (n_rows,) tokens of each row, without padding.
        bounds: (n_rows + 1,) where each row begins among all rows' tokens, padding included.
    """

    def __init__(self, segments: Segments | Ids, windows: Windows, frame: Frame) -> None:
        self._segments = segments
        self._windows = windows
        self._frame = frame
        self._made: dict[int, Encoding] = {}
        spans, is_pair = windows.spans, windows.is_pair
        counts = np.zeros((len(spans), 7), dtype=np.int64)
        counts[:, FIRST] = spans[:, 1] - spans[:, 0]
        counts[:, SECOND] = spans[:, 3] - spans[:, 2]
        if frame.special:
            counts[:, CLS] = 1
            counts[:, SEP] = 1 + is_pair
            counts[:, END] = is_pair
        self.lengths = counts.sum(axis=1)
        width = int(self.lengths.max(initial=0)) if frame.width is None else frame.width
        width += -width % frame.multiple
        counts[:, LEFT if frame.side == "left" else RIGHT] = np.maximum(width - self.lengths, 0)
        self.bounds = np.append(0, np.cumsum(counts.sum(axis=1)))
        kinds = np.tile(np.arange(7, dtype=np.int8), (len(spans), 1))
        kinds[is_pair, SEP] = MIDDLE
        # Place of each token among the texts' tokens; [CLS], [SEP] and [PAD] come after those.
        n = len(segments.ids)
        starts = np.tile(np.array([n + 2, n, 0, n + 1, 0, n + 1, n + 2]), (len(spans), 1))
        starts[:, [FIRST, SECOND]] = spans[:, [0, 2]]
        flat = counts.ravel()
        self._kinds = np.repeat(kinds.ravel(), flat)
        steps = np.arange(self.bounds[-1]) - np.repeat(np.cumsum(flat) - flat, flat)
        steps[(self._kinds != FIRST) & (self._kinds != SECOND)] = 0
        self._places = np.repeat(starts.ravel(), flat) + steps

    @cached_property
    def _ids(self) -> np.ndarray:
        frame = self._frame
        return np.append(self._segments.ids, [frame.cls[0], frame.sep[0], frame.pad[0]])

    @cached_property
    def _spans(self) -> np.ndarray:
        return np.append(np.stack(self._segments.spans, axis=1), np.zeros((3, 2), dtype=np.int64), axis=0)

    @cached_property
    def _tokens(self) -> list[str]:
        frame = self._frame
        return [*self._segments.tokens, frame.cls[1], frame.sep[1], frame.pad[1]]

    def column(self, name: str, here: slice = slice(None)) -> np.ndarray:
        """One of "ids", "type_ids", "attention_mask", "special_tokens_mask", "offsets", of some or all tokens.

        Returns:
            (n,) int64, or (n, 2) for offsets, the rows one after the other.
        """
        if name == "ids":
            return self._ids[self._places[here]]
        if name == "offsets":
            return self._spans[self._places[here]]
        pad, second = self._frame.pad_type, int(self._frame.special)
        of_kind = {
            "type_ids": [pad, 0, 0, 0, second, 1, pad, 1],
            "attention_mask": [0, 1, 1, 1, 1, 1, 0, 1],
            "special_tokens_mask": [1, 1, 0, 1, 0, 1, 1, 1],
        }[name]
        return np.array(of_kind)[self._kinds[here]]

    def lists(self, name: str) -> list[list[Any]]:
        """A column as one list a row; offsets are pairs of ints."""
        if name == "attention_mask" and len(self._kinds) == self.lengths.sum():
            return [[1] * length for length in self.lengths.tolist()]
        flat = _listed(self.column(name))
        return [flat[start:end] for start, end in pairwise(self.bounds.tolist())]

    def arrays(self, name: str) -> list[np.ndarray]:
        """A column as one array a row, for rows of equal length."""
        column = self.column(name)
        return [*column.reshape(len(self), -1, *column.shape[1:])]

    def of_row(self, name: str, row: int) -> list[Any]:
        """A column's part of a row, or its "tokens", "word_ids" or "sequence_ids"."""
        here = slice(*self.bounds[row : row + 2])
        if name == "tokens":
            return [self._tokens[place] for place in self._places[here].tolist()]
        if name not in ("word_ids", "sequence_ids"):
            return _listed(self.column(name, here))
        texts = [{FIRST: 0, SECOND: 1}.get(kind) for kind in self._kinds[here].tolist()]
        if name == "sequence_ids":
            return texts
        words, n = self._segments.words, len(self._segments.ids)
        return [None if place >= n else int(words[place]) for place in self._places[here].tolist()]

    def is_pair(self, row: int) -> bool:
        """True if the row is of a pair of texts."""
        return bool(self._windows.is_pair[row])

    def others(self, row: int) -> list[Encoding]:
        """The other windows of the text whose first window the row is."""
        samples = self._windows.samples
        if row > 0 and samples[row - 1] == samples[row]:
            return []
        return [self[i] for i in takewhile(lambda i: samples[i] == samples[row], range(row + 1, len(self)))]

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Encoding: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoding]: ...

    def __getitem__(self, index: int | slice) -> Encoding | list[Encoding]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self._made.setdefault(row, Encoding(self, row))

    def __reduce__(self) -> tuple[type, tuple[list[Encoding]]]:
        return list, ([*self],)


def _listed(column: np.ndarray) -> list[Any]:
    return column.tolist() if column.ndim == 1 else [*zip(*column.T.tolist(), strict=True)]
