"""From texts to token ids, spans and words, many texts at a time. Needs no torch.

SentencePiece gives pieces, each of which splits into tokens, always the same ones: a table holds them, and a batch is
looked up in it. Spans, words and the tokens' text are computed when first asked for.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import sentencepiece as spm

from .alignment import UNDERLINE, through_normaliser, through_origins
from .parts import Part

PUNCTUATION = frozenset(",;:.?!~，；：。？！《》【】")
SAMPLING = {"nbest_size": 64, "alpha": 0.1}
"""Defaults of a tokenizer that samples, those of transformers 4.40.2."""

Span = tuple[int, int]


def split_piece(piece: str) -> list[Span]:
    """Spans of the tokens of one SentencePiece piece: "▁abc12，中" -> "▁abc", "12", "，", "中".

    Each CJK character (U+4E00..9FFF) and each of `PUNCTUATION` is one token; digits (`str.isdigit`) are split from
    the rest.
    """
    cuts = {0, len(piece)}
    for i, char in enumerate(piece):
        if char in PUNCTUATION or "\u4e00" <= char <= "\u9fff":
            cuts |= {i, i + 1}
        elif i > 0 and char != UNDERLINE and char.isdigit() != piece[i - 1].isdigit():
            cuts.add(i)
    # Cuts leave bare "▁"s. They are dropped, except at the end: 4.40.2 keeps what follows the last cut.
    spans = pairwise(sorted(cuts))
    return [(start, end) for start, end in spans if piece[start:end] != UNDERLINE or end == len(piece)]


class PieceTable:
    """Tokens of pieces, as arrays to look many pieces up in.

    Args:
        pieces: SentencePiece's; their place is their number.
        vocab: id of each token that has one.
        whole: pieces that are one token each, whatever their text, with its id; they come after `pieces`.

    Attributes:
        count, first: (n_pieces,) number of a piece's tokens, and the place of the first in the arrays below.
        length, words: (n_pieces,) characters of a piece, and "▁"s among them.
        lone, opens: (n_pieces,) bool: it is "▁"; it begins with "▁".
        ids: (n_tokens,) ids of the tokens, -1 for none.
        starts, ends: (n_tokens,) a token's characters within its piece, without "▁"s around them.
        before: (n_tokens,) "▁"s of the piece before `starts`.
        texts: text of each token whose id does not tell it: those without an id, and `whole`.
    """

    def __init__(self, pieces: Sequence[str], vocab: Mapping[str, int], whole: Mapping[str, int] | None = None) -> None:
        special = {
            char
            for char in set().union(*pieces)
            if char in PUNCTUATION or "\u4e00" <= char <= "\u9fff" or char.isdigit()
        }
        counts: list[int] = []
        tokens: list[tuple[int, int, int, int]] = []
        self.texts: dict[int, str] = {}
        for piece in pieces:
            spans = [(0, len(piece))] if special.isdisjoint(piece) else split_piece(piece)
            counts.append(len(spans))
            for start, end in spans:
                token = piece[start:end]
                token_id = vocab.get(token, -1)
                if token_id < 0:
                    self.texts[len(tokens)] = token
                visible = end - len(token.lstrip(UNDERLINE))
                last = max(visible, end - len(token) + len(token.rstrip(UNDERLINE)))
                tokens.append((token_id, visible, last, piece.count(UNDERLINE, 0, visible)))
        n_whole = len(whole or ())
        for token, token_id in (whole or {}).items():
            self.texts[len(tokens)] = token
            tokens.append((token_id, 0, len(token), 0))
        self.count = np.array([*counts, *[1] * n_whole], dtype=np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.length = np.array([len(piece) for piece in [*pieces, *(whole or ())]], dtype=np.int64)
        self.words = np.array([*(piece.count(UNDERLINE) for piece in pieces), *[0] * n_whole], dtype=np.int64)
        self.lone = np.array([*(piece == UNDERLINE for piece in pieces), *[False] * n_whole], dtype=bool)
        self.opens = np.array([*(piece.startswith(UNDERLINE) for piece in pieces), *[False] * n_whole], dtype=bool)
        columns = np.array(tokens, dtype=np.int64).reshape(-1, 4).T
        self.ids, self.starts, self.ends, self.before = np.ascontiguousarray(columns)


class Segmenter:
    """SentencePiece model with the ids of its pieces' tokens.

    Args:
        processor: SentencePiece model.
        options: arguments that it was made with; those of sampling are read.
        vocab: id of each token.
    """

    def __init__(self, processor: spm.SentencePieceProcessor, options: dict[str, Any], vocab: Mapping[str, int]):
        self.processor = processor
        self.options = options
        self.vocab = vocab
        self.names = {token_id: token for token, token_id in vocab.items()}

    @cached_property
    def pieces(self) -> list[str]:
        """Text of each of SentencePiece's ids."""
        return list(self.processor.id_to_piece(list(range(self.processor.get_piece_size()))))

    @cached_property
    def table(self) -> PieceTable:
        """Tokens of each of SentencePiece's ids."""
        return PieceTable(self.pieces, self.vocab)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """SentencePiece's id of each piece."""
        return {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, parts: Sequence[str | Part]) -> tuple[np.ndarray, np.ndarray, PieceTable | None]:
        """Numbers of all parts' pieces, how many each part has, and the table of pieces that the model lacks.

        The latter's numbers come after those of the model's own pieces; the table is None if there are none.
        """
        added = {i: part for i, part in enumerate(parts) if isinstance(part, Part) and part.added_id is not None}
        texts = [part if isinstance(part, str) else part.text for i, part in enumerate(parts) if i not in added]
        numbers, sizes, new = self._encode_texts(texts)
        if not added:
            return numbers, sizes, PieceTable(new, self.vocab) if new else None
        whole = {part.text: int(part.added_id or 0) for part in added.values()}
        of_token = {text: len(self.pieces) + len(new) + i for i, text in enumerate(whole)}
        rows = np.array([*added])
        before = rows - np.arange(len(rows))  # texts before each added token
        bounds = np.append(0, np.cumsum(sizes))
        numbers = np.insert(numbers, bounds[before], [of_token[part.text] for part in added.values()])
        return numbers, np.insert(sizes, before, 1), PieceTable(new, self.vocab, whole)

    def _encode_texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        unknown_id = self.processor.unk_id()
        sampled = self.options.get("enable_sampling") is True
        rows = self._call(texts, str if sampled else int)
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        new: dict[str, int] = {}
        size = len(self.pieces)
        if sampled:
            known = self.numbers
            flat = (known.get(p, -1) if p in known else new.setdefault(p, size + len(new)) for row in rows for p in row)
            return np.fromiter(flat, np.int64, int(sizes.sum())), sizes, list(new)
        numbers = np.fromiter(chain.from_iterable(rows), np.int64, int(sizes.sum()))
        places = np.flatnonzero(numbers == unknown_id)
        if len(places):
            # Only as pieces do unknown characters keep their text.
            unsure = np.unique(np.searchsorted(np.cumsum(sizes), places, side="right"))
            pieces = self._call([texts[i] for i in unsure], str)
            numbers[places] = [
                new.setdefault(piece, size + len(new))
                for i, row in zip(unsure, pieces, strict=True)
                for number, piece in zip(rows[i], row, strict=True)
                if number == unknown_id
            ]
        return numbers, sizes, list(new)

    def places_before(self, text: str, length: int) -> int | None:
        """Number of places by which normalising moves every character of a text; None: it is not the same for all.

        Raises:
            ValueError: the text has not `length` characters when normalised.
        """
        normalised = self.processor.normalize(text)
        if len(normalised) != length:
            accepted = "a SentencePiece model whose pieces make up the text, for offsets"
            raise ValueError(f"sp_model_kwargs={self.options!r}: expected {accepted} (got {length} characters)")
        same = text.replace(" ", UNDERLINE)
        if normalised == UNDERLINE + same:
            return 1
        return 0 if normalised == same else None

    def _call(self, texts: list[str], out_type: type) -> list[list[Any]]:
        options: dict[str, Any] = {"enable_sampling": False}
        if self.options.get("enable_sampling") is True:
            given = {name: self.options.get(name) for name in SAMPLING}
            options = SAMPLING | {name: value for name, value in given.items() if value is not None}
            options["enable_sampling"] = True
        try:
            return self.processor.encode(texts, out_type=out_type, num_threads=1, **options)
        except (RuntimeError, TypeError):
            for text in texts:
                _check_utf8(text)
            raise


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"its character {error.start} is {text[error.start]!r}, a lone surrogate"
        raise ValueError(f"text={text[:100]!r}: expected text that UTF-8 can encode; {where}") from None


class Segments:
    """Tokens of many sequences, each of which is a text or consists of parts.

    Args:
        segmenter: SentencePiece and the vocabulary.
        parts: those of all sequences, one after the other; a str is a part at the caller's own places.
        sizes: number of parts of each sequence; None: one each.
        unk_id: id of tokens that have none of their own.

    Attributes:
        ids: token ids of each sequence.
    """

    def __init__(
        self, segmenter: Segmenter, parts: Sequence[str | Part], sizes: Sequence[int] | None, unk_id: int
    ) -> None:
        self._segmenter = segmenter
        self._parts = parts
        self._textless = False
        self._numbers, self._part_sizes, self._new = segmenter.encode(parts)
        lone, opens = self._of_piece("lone"), self._of_piece("opens")
        ends = np.cumsum(self._part_sizes)
        self._part_bounds = np.append(0, ends)  # in pieces
        # A lone "▁" is a token only between two pieces of which the second does not begin with "▁".
        inner = np.ones(len(lone) + 1, dtype=bool)
        inner[self._part_bounds] = False
        inner[ends - 1] = False
        inner[:-1] &= ~np.append(opens[1:], False)
        self._count = np.where(lone & ~inner[:-1], 0, self._of_piece("count"))
        token_ends = np.cumsum(self._count)
        total = int(token_ends[-1]) if len(token_ends) else 0
        self._index = np.repeat(self._of_piece("first") - token_ends + self._count, self._count) + np.arange(total)
        self._token_bounds = np.append(0, token_ends)[self._part_bounds]  # of parts, in tokens
        per_sequence = np.append(0, np.cumsum(sizes)) if sizes is not None else np.arange(len(parts) + 1)
        self._bounds = self._token_bounds[per_sequence]  # of sequences, in tokens
        ids = self._of_token("ids")
        self.ids: list[list[int]] = self._per_sequence(np.where(ids < 0, unk_id, ids).tolist())

    def give_ids(self, sequence: int, ids: list[int]) -> None:
        """Set the token ids of a sequence that has no text."""
        self.ids[sequence] = ids
        self._textless = True

    def _per_sequence(self, values: list[Any]) -> list[list[Any]]:
        if self._textless:
            raise ValueError("offsets, words and tokens: expected texts, got token ids, which have none of these")
        return [values[start:end] for start, end in pairwise(self._bounds.tolist())]

    def _of_piece(self, name: str) -> np.ndarray:
        table, new = self._segmenter.table, self._new
        shift = len(table.ids) if name == "first" else 0
        return _look_up(getattr(table, name), None if new is None else getattr(new, name) + shift, self._numbers)

    def _of_token(self, name: str) -> np.ndarray:
        table, new = self._segmenter.table, self._new
        return _look_up(getattr(table, name), None if new is None else getattr(new, name), self._index)

    @cached_property
    def tokens(self) -> list[list[str]]:
        """Text of each token, with "▁" for the space before it; that of [UNK] is what it stands for."""
        table, new = self._segmenter.table, self._new
        odd = table.texts if new is None else table.texts | {len(table.ids) + i: t for i, t in new.texts.items()}
        names = self._segmenter.names
        pairs = zip(self._index.tolist(), self._of_token("ids").tolist(), strict=True)
        return self._per_sequence([odd[i] if i in odd else names[token_id] for i, token_id in pairs])

    @cached_property
    def spans(self) -> list[list[Span]]:
        """Characters `[start, end)` of the caller's string, or word, that each token comes from.

        Raises:
            ValueError: the pieces do not make up the text, as with some `sp_model_kwargs`.
        """
        bounds = np.append(0, np.cumsum(self._of_piece("length")))
        places = np.repeat(bounds[:-1] - np.repeat(bounds[self._part_bounds[:-1]], self._part_sizes), self._count)
        starts, ends = places + self._of_token("starts"), places + self._of_token("ends")
        lengths = np.diff(bounds[self._part_bounds]).tolist()
        shifts = [0] * len(self._parts)
        for i, (part, length, (first, last)) in enumerate(
            zip(self._parts, lengths, pairwise(self._token_bounds.tolist()), strict=True)
        ):
            here = slice(first, last)
            text = part if isinstance(part, str) else part.text
            if isinstance(part, str) or part.added_id is None:
                shift = self._segmenter.places_before(text, length)
                if shift is None:
                    starts[here], ends[here] = through_normaliser(
                        text, self._segmenter.processor, starts[here], ends[here]
                    )
                else:
                    shifts[i] = -shift
            if not isinstance(part, str):
                if part.origins is not None:
                    moved = slice(None)
                    starts[here] += shifts[i]
                    ends[here] += shifts[i]
                    shifts[i] = 0
                    starts[here], ends[here] = through_origins(part.origins, starts[here][moved], ends[here][moved])
                shifts[i] += part.start
        shift_of_token = np.repeat(shifts, np.diff(self._token_bounds))
        return self._per_sequence(
            list(zip((starts + shift_of_token).tolist(), (ends + shift_of_token).tolist(), strict=True))
        )

    @cached_property
    def words(self) -> list[list[int | None]]:
        """Number of each token's word: the caller's own, else runs between white space; added tokens are words."""
        per_part = np.diff(self._token_bounds)
        given = [part.word for part in self._parts if isinstance(part, Part) and part.word is not None]
        if given:
            return self._per_sequence(np.repeat(given, per_part).tolist())
        spaces = np.cumsum(self._of_piece("words")) - self._of_piece("words")
        number = np.repeat(spaces, self._count) + self._of_token("before")
        part = np.repeat(np.arange(len(self._parts)), per_part)
        opens = np.append(True, (np.diff(number) != 0) | (np.diff(part) != 0))[: len(number)]
        words = np.cumsum(opens) - 1
        first = np.append(words, 0)[self._bounds[:-1]]
        return self._per_sequence((words - np.repeat(first, np.diff(self._bounds))).tolist())


def _look_up(known: np.ndarray, new: np.ndarray | None, index: np.ndarray) -> np.ndarray:
    """Elements of `known`, continued by `new`."""
    if new is None:
        return known[index]
    found = known[np.minimum(index, len(known) - 1)]
    is_new = index >= len(known)
    found[is_new] = new[index[is_new] - len(known)]
    return found
