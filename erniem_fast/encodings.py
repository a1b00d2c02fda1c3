"""Rows of a batch: windows of long texts, special tokens, padding, and what each token is. Needs no torch.

A row is `[CLS] A [SEP]`, or `[CLS] A [SEP] [SEP] B [SEP]` for a pair. Windows are those of the library `tokenizers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar, overload

from .segmentation import Segments, Span

T = TypeVar("T")

N_SPECIAL = {False: 2, True: 4}
"""Special tokens of a row: of a text, and of a pair."""


def frame(first: list[T], second: list[T] | None, cls: T, sep: T) -> list[T]:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] [SEP] B [SEP]`, of ids or of anything else that each token has."""
    return [cls, *first, sep] if second is None else [cls, *first, sep, sep, *second, sep]


class Window(NamedTuple):
    """The tokens of a row.

    Attributes:
        sample: number of the text or pair in the batch.
        start, end: its tokens in the text, or in the first text of the pair.
        pair_start, pair_end: those in the second text; None without one.
    """

    sample: int
    start: int
    end: int
    pair_start: int | None = None
    pair_end: int | None = None


@dataclass(frozen=True)
class Truncation:
    """What is done with a text that is too long.

    Attributes:
        strategy: "longest_first", "only_first" or "only_second".
        max_length: tokens of a row, special ones included.
        special: a row has special tokens.
        stride: tokens that a window shares with the one before.
        side: "right" or "left", where tokens are cut.
        all_windows: return all windows of a text, not the first only.

    Raises:
        ValueError: a value is not accepted.
    """

    strategy: str
    max_length: int
    special: bool
    stride: int
    side: str
    all_windows: bool

    def windows(self, sample: int, n_first: int, n_second: int | None) -> list[Window]:
        """Windows of a text of so many tokens, or of a pair."""
        n_special = N_SPECIAL[n_second is not None] if self.special else 0
        room = self.max_length - n_special
        if room < 0:
            raise ValueError(f"max_length={self.max_length}: expected at least {n_special}, the special tokens")
        second = n_second or 0
        if n_first + second <= room:
            return [Window(sample, 0, n_first, None if n_second is None else 0, n_second)]
        if self.strategy == "longest_first":
            # As in transformers 4.40.2: tokens go one by one, of the longer text, of equal ones from the second.
            keep_first = min(n_first, max(room - second, (room + 1) // 2))
            keep_second = room - keep_first
        elif self.strategy == "only_first":
            keep_first, keep_second = room - second, second
            self._check_room("first", keep_first, "second", second, n_special)
        else:
            if n_second is None:
                raise ValueError(f"truncation='only_second': expected a pair of texts, got one of {n_first} tokens")
            keep_first, keep_second = n_first, room - n_first
            self._check_room("second", keep_second, "first", n_first, n_special)
        firsts = self._spans(n_first, keep_first)
        if n_second is None:
            return [Window(sample, *span) for span in firsts]
        seconds = self._spans(n_second, keep_second)
        pairs = [(firsts[0], seconds[0]), *((a, b) for a in firsts[1:] for b in seconds)]
        pairs += [(firsts[0], b) for b in seconds[1:]]
        return [Window(sample, *a, *b) for a, b in pairs]

    def _check_room(self, name: str, room: int, other: str, n_other: int, n_special: int) -> None:
        if room <= 0:
            held = (
                f"the {other} text's {n_other} and {n_special} special ones" if n_other else f"{n_special} special ones"
            )
            raise ValueError(
                f"max_length={self.max_length} with truncation='only_{name}': expected more tokens than {held}, "
                f"which leave none for the {name} text; shorten the {other} text or raise max_length"
            )

    def _spans(self, n: int, size: int) -> list[Span]:
        """Spans of `size` of `n` tokens, each of which shares `stride` with the one before."""
        if n <= size:
            return [(0, n)]
        if not self.all_windows:
            return [(0, size)] if self.side == "right" else [(n - size, n)]
        if self.stride >= size:
            raise ValueError(
                f"stride={self.stride}: expected less than the {size} tokens of a text that max_length="
                f"{self.max_length} leaves room for beside special tokens and a pair's other text"
            )
        starts = range(0, n - self.stride, size - self.stride)
        spans = [(start, min(start + size, n)) for start in starts]
        return spans if self.side == "right" else [(n - end, n - start) for start, end in spans]


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
        return self._rows.ids(self._row)

    @cached_property
    def type_ids(self) -> list[int]:
        """0 for `[CLS] A [SEP]`; of a pair 0 for `[CLS] A` and 1 for `[SEP] [SEP] B [SEP]`."""
        return self._rows.type_ids(self._row)

    @cached_property
    def attention_mask(self) -> list[int]:
        """0 for padding, 1 for other tokens."""
        return self._rows.attention_mask(self._row)

    @cached_property
    def special_tokens_mask(self) -> list[int]:
        """1 for special tokens and padding, 0 for a text's tokens, also if it contains special ones."""
        return self._rows.special_tokens_mask(self._row)

    @cached_property
    def tokens(self) -> list[str]:
        """Text of each token, "▁" for the space before it; that of [UNK] is what it stands for."""
        return self._rows.tokens(self._row)

    @cached_property
    def offsets(self) -> list[Span]:
        """Characters `[start, end)` of the caller's string, or word; (0, 0) of special tokens and padding."""
        return self._rows.offsets(self._row)

    @cached_property
    def word_ids(self) -> list[int | None]:
        """Number of the caller's word, or of that between white space; None of special tokens and padding."""
        return self._rows.word_ids(self._row)

    @cached_property
    def sequence_ids(self) -> list[int | None]:
        """0 for a text's tokens, 1 for those of a pair's second text, None for special tokens and padding."""
        return self._rows.sequence_ids(self._row)

    @cached_property
    def n_sequences(self) -> int:
        """1, or 2 for a pair."""
        return self._rows.n_sequences(self._row)

    @cached_property
    def overflowing(self) -> list["Encoding"]:
        """The text's other windows, of its first one and if windows were asked for."""
        return self._rows.overflowing(self._row)

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
class SpecialTokens:
    """Id and text of each token that rows are framed and padded with."""

    cls: tuple[int, str]
    sep: tuple[int, str]
    pad: tuple[int, str]
    pad_type: int


class Encodings(Sequence[Encoding]):
    """The rows of a batch; each `Encoding` is made when it is asked for.

    Args:
        segments: tokens of the first texts, then of the second ones.
        seconds: number in `segments` of each sample's second text; None without one.
        windows: tokens of each row.
        special: the special tokens.
        framed: rows have special tokens.
    """

    def __init__(
        self,
        segments: Segments,
        seconds: Sequence[int | None],
        windows: Sequence[Window],
        special: SpecialTokens,
        framed: bool,
    ) -> None:
        self._segments = segments
        self._seconds = seconds
        self._windows = windows
        self._special = special
        self._framed = framed
        self._width = 0
        self._side = "right"
        self._made: dict[int, Encoding] = {}

    def lengths(self) -> list[int]:
        """Tokens of each row, padding left out."""
        more = N_SPECIAL if self._framed else {False: 0, True: 0}
        return [
            w.end - w.start + (more[False] if w.pair_end is None else more[True] + w.pair_end - (w.pair_start or 0))
            for w in self._windows
        ]

    def pad(self, width: int, side: str) -> None:
        """Pad rows to `width` tokens, on the side "right" or "left"."""
        self._width, self._side = width, side

    def ids(self, row: int) -> list[int]:
        """Token ids of a row."""
        special = self._special
        return self._of_tokens(row, self._segments.ids, special.cls[0], special.sep[0], special.pad[0])

    def offsets(self, row: int) -> list[Span]:
        """Characters of each token; (0, 0) of special tokens and padding."""
        return self._of_tokens(row, self._segments.spans, (0, 0), (0, 0), (0, 0))

    def attention_mask(self, row: int) -> list[int]:
        """0 for padding, 1 for other tokens."""
        return self._of_texts(row, 1, 1, 1, 1, 0)

    def special_tokens_mask(self, row: int) -> list[int]:
        """1 for special tokens and padding, 0 for a text's tokens."""
        return self._of_texts(row, 0, 0, 1, 1, 1)

    def type_ids(self, row: int) -> list[int]:
        """0 for `[CLS] A [SEP]`; of a pair 0 for `[CLS] A` and 1 for `[SEP] [SEP] B [SEP]`."""
        second = int(self._framed and self._windows[row].pair_end is not None)
        return self._of_texts(row, 0, second, 0, second, self._special.pad_type)

    def tokens(self, row: int) -> list[str]:
        """Text of each token."""
        special = self._special
        return self._of_tokens(row, self._segments.tokens, special.cls[1], special.sep[1], special.pad[1])

    def word_ids(self, row: int) -> list[int | None]:
        """Number of each token's word; None of special tokens and padding."""
        return self._of_tokens(row, self._segments.words, None, None, None)

    def sequence_ids(self, row: int) -> list[int | None]:
        """0 for a text's tokens, 1 for those of a pair's second text, None for special tokens and padding."""
        return self._of_texts(row, 0, 1, None, None, None)

    def n_sequences(self, row: int) -> int:
        """1, or 2 for a pair."""
        return 1 if self._windows[row].pair_end is None else 2

    def overflowing(self, row: int) -> list[Encoding]:
        """Other windows of the text whose first window the row is."""
        windows = self._windows
        if row > 0 and windows[row - 1].sample == windows[row].sample:
            return []
        others = takewhile(lambda i: windows[i].sample == windows[row].sample, range(row + 1, len(self)))
        return [self[i] for i in others]

    def _of_tokens(self, row: int, values: Sequence[list[T]], cls: T, sep: T, pad: T) -> list[T]:
        sample, start, end, pair_start, pair_end = self._windows[row]
        second = self._seconds[sample]
        pair = None if second is None else values[second][pair_start:pair_end]
        return self._row(values[sample][start:end], pair, cls, sep, pad)

    def _of_texts(self, row: int, first: T, second: T, cls: T, sep: T, pad: T) -> list[T]:
        _, start, end, pair_start, pair_end = self._windows[row]
        pair = None if pair_start is None or pair_end is None else [second] * (pair_end - pair_start)
        return self._row([first] * (end - start), pair, cls, sep, pad)

    def _row(self, first: list[T], second: list[T] | None, cls: T, sep: T, pad: T) -> list[T]:
        row = frame(first, second, cls, sep) if self._framed else [*first, *(second or ())]
        missing = [pad] * (self._width - len(row))
        return row + missing if self._side == "right" else missing + row

    def __len__(self) -> int:
        return len(self._windows)

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
