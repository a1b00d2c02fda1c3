"""From texts to token ids, spans and words, many texts at a time. Needs no torch.

SentencePiece gives pieces, each of which splits into tokens, always the same ones: a table holds them, and a batch is
looked up in it. Spans, words and the tokens' text are computed when first asked for.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import sentencepiece as spm

from .alignment import UNDERLINE, Span, through_normaliser, through_origins
from .parts import Parts

PUNCTUATION = frozenset(",;:.?!~，；：。？！《》【】")
CHARS_PER_THREAD = 30_000
"""Characters for which another thread of SentencePiece is worth its start."""
_N_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

SAMPLING = {"nbest_size": 64, "alpha": 0.1}
"""Defaults of a tokenizer that samples, those of transformers 4.40.2."""

UNALIGNED = ("add_bos", "add_eos", "reverse", "emit_unk_piece")
"""Arguments of SentencePiece with which pieces do not make up the text in its order."""


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
        chars = set().union(*pieces)
        cutting = {char for char in chars if char in PUNCTUATION or "\u4e00" <= char <= "\u9fff" or char.isdigit()}
        counts: list[int] = []
        tokens: list[tuple[int, int, int, int]] = []
        self.texts: dict[int, str] = {}
        for piece in pieces:
            spans = [(0, len(piece))] if cutting.isdisjoint(piece) else split_piece(piece)
            counts.append(len(spans))
            for start, end in spans:
                token = piece if end - start == len(piece) else piece[start:end]
                token_id = vocab.get(token, -1)
                if token_id < 0:
                    self.texts[len(tokens)] = token
                before = 0
                if UNDERLINE in piece:
                    start = end - len(token.lstrip(UNDERLINE))
                    end = max(start, end - len(token) + len(token.rstrip(UNDERLINE)))
                    before = piece.count(UNDERLINE, 0, start)
                tokens.append((token_id, start, end, before))
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
        self.samples = options.get("enable_sampling") is True
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

    def encode(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, PieceTable | None]:
        """Numbers of all parts' pieces, how many each part has, and the table of pieces that the model lacks.

        The latter's numbers come after those of the model's own pieces; the table is None if there are none.
        """
        if not parts.added:
            numbers, sizes, new = self._encode_texts(parts.texts)
            return numbers, sizes, PieceTable(new, self.vocab) if new else None
        numbers, sizes, new = self._encode_texts([t for i, t in enumerate(parts.texts) if i not in parts.added])
        whole = {parts.texts[i]: token_id for i, token_id in parts.added.items()}
        of_token = {text: len(self.pieces) + len(new) + i for i, text in enumerate(whole)}
        before = np.array([*parts.added]) - np.arange(len(parts.added))  # texts before each added token
        places = np.append(0, np.cumsum(sizes))[before]
        numbers = np.insert(numbers, places, [of_token[parts.texts[i]] for i in parts.added])
        return numbers, np.insert(sizes, before, 1), PieceTable(new, self.vocab, whole)

    def _encode_texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        unknown_id = self.processor.unk_id()
        rows = self._call(texts, str if self.samples else int)
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        new: dict[str, int] = {}
        size = len(self.pieces)
        if self.samples:
            known = self.numbers
            flat = (known[p] if p in known else new.setdefault(p, size + len(new)) for row in rows for p in row)
            return np.fromiter(flat, np.int64, int(sizes.sum())), sizes, list(new)
        numbers = np.fromiter(chain.from_iterable(rows), np.int64, int(sizes.sum()))
        places = np.flatnonzero(numbers == unknown_id)
        if len(places):
            # Only as pieces do unknown characters keep their text.
            ends = np.cumsum(sizes)
            row_of_place = np.searchsorted(ends, places, side="right")
            unsure, again = np.unique(row_of_place, return_inverse=True)
            pieces = self._call([texts[i] for i in unsure.tolist()], str)
            within = places - (ends - sizes)[row_of_place]
            numbers[places] = [
                new.setdefault(pieces[i][k], size + len(new))
                for i, k in zip(again.tolist(), within.tolist(), strict=True)
            ]
        return numbers, sizes, list(new)

    def normalised(self, texts: list[str]) -> tuple[list[int], list[int]]:
        """Lengths of texts when normalised, and by how many places that moves all of a text's characters.

        -1: they are moved differently.
        """
        after = self.processor.normalize(texts)
        same = [text.replace(" ", UNDERLINE) for text in texts]
        pairs = zip(after, same, strict=True)
        moves = [1 if new == UNDERLINE + old else 0 if new == old else -1 for new, old in pairs]
        return [*map(len, after)], moves

    def _call(self, texts: list[str], out_type: type) -> list[list[Any]]:
        options: dict[str, Any] = {"enable_sampling": self.samples, "num_threads": 1}
        if self.samples:
            given = {name: self.options.get(name) for name in SAMPLING}
            options |= SAMPLING | {name: value for name, value in given.items() if value is not None}
        elif os.environ.get("TOKENIZERS_PARALLELISM", "").lower() not in ("0", "false", "off", "no", "f", "n"):
            options["num_threads"] = max(1, min(_N_CORES, sum(map(len, texts)) // CHARS_PER_THREAD))
        try:
            return self.processor.encode(texts, out_type=out_type, **options)
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
    """Tokens of many texts, one after the other.

    Args:
        segmenter: SentencePiece and the vocabulary.
        parts: those of all texts, one after the other.
        unk_id: id of tokens that have none of their own.

    Attributes:
        ids: (n_tokens,) int64 token ids.
        bounds: (n_texts + 1,) where each text begins; the last one is `n_tokens`.
    """

    def __init__(self, segmenter: Segmenter, parts: Parts, unk_id: int) -> None:
        self._segmenter = segmenter
        self._parts = parts
        self._numbers, self._part_sizes, self._new = segmenter.encode(parts)
        self._new_pieces = np.flatnonzero(self._numbers >= len(segmenter.pieces))
        lone, opens = self._of_piece("lone"), self._of_piece("opens")
        ends = np.cumsum(self._part_sizes)
        self._part_bounds = np.append(0, ends)  # in pieces
        # A lone "▁" is a token only between two pieces of which the second does not begin with "▁".
        inner = np.append(~np.append(opens[1:], True), False)[: len(lone) + 1]
        inner[self._part_bounds] = False
        inner[ends - 1] = False
        self._count = self._of_piece("count")
        self._count[lone & ~inner[:-1]] = 0
        token_ends = np.append(0, np.cumsum(self._count))
        first = self._of_piece("first")
        first[self._new_pieces] += len(segmenter.table.ids)
        self._index = _ranges(first, self._count)
        self._new_tokens = np.flatnonzero(self._index >= len(segmenter.table.ids))
        self._token_bounds = token_ends[self._part_bounds]  # of parts, in tokens
        self.bounds = self._token_bounds[np.append(0, np.cumsum(parts.sizes, dtype=np.int64))]
        self.ids = self._of_token("ids")
        self.ids[self.ids < 0] = unk_id

    def _of_piece(self, name: str) -> np.ndarray:
        return self._look_up(name, self._numbers, self._new_pieces, len(self._segmenter.pieces))

    def _of_token(self, name: str) -> np.ndarray:
        return self._look_up(name, self._index, self._new_tokens, len(self._segmenter.table.ids))

    def _look_up(self, name: str, index: np.ndarray, is_new: np.ndarray, size: int) -> np.ndarray:
        # Elements of the model's table, continued by the one of new pieces.
        found = getattr(self._segmenter.table, name).take(index, mode="clip")
        if self._new is not None:
            found[is_new] = getattr(self._new, name)[index[is_new] - size]
        return found

    @cached_property
    def tokens(self) -> list[str]:
        """Text of each token, with "▁" for the space before it; that of [UNK] is what it stands for."""
        table, new = self._segmenter.table, self._new
        odd = table.texts if new is None else table.texts | {len(table.ids) + i: t for i, t in new.texts.items()}
        names = self._segmenter.names
        pairs = zip(self._index.tolist(), self._of_token("ids").tolist(), strict=True)
        return [odd[i] if i in odd else names[token_id] for i, token_id in pairs]

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends (n_tokens,) int64 in the caller's string, or word, of what each token comes from.

        Raises:
            ValueError: the pieces do not make up the text, as with some `sp_model_kwargs`.
        """
        bounds = np.append(0, np.cumsum(self._of_piece("length")))
        places = np.repeat(bounds[:-1] - np.repeat(bounds[self._part_bounds[:-1]], self._part_sizes), self._count)
        starts, ends = places + self._of_token("starts"), places + self._of_token("ends")
        lengths, moves = map(partial(np.array, dtype=np.int64), self._segmenter.normalised(self._parts.texts))
        added = [*self._parts.added]
        moves[added] = 0
        is_wrong = lengths != np.diff(bounds[self._part_bounds])
        is_wrong[added] = False
        options = self._segmenter.options
        if is_wrong.any() or any(options.get(name) for name in UNALIGNED):
            accepted = "a SentencePiece model whose pieces make up the text in its order, or no offsets"
            raise ValueError(f"sp_model_kwargs={options!r}: expected {accepted}")
        shifts = np.repeat(moves.clip(min=0), np.diff(self._token_bounds))
        starts, ends = starts - shifts, ends - shifts
        moved = np.flatnonzero(moves < 0)
        if len(moved):
            here = np.repeat(moves < 0, np.diff(self._token_bounds))
            sizes = np.diff(self._token_bounds)[moved]
            texts = [self._parts.texts[i] for i in moved]
            starts[here], ends[here] = through_normaliser(
                texts, self._segmenter.processor, starts[here], ends[here], sizes
            )
        for i, origins in self._parts.origins.items():
            part = slice(*self._token_bounds[i : i + 2])
            starts[part], ends[part] = through_origins(origins, starts[part], ends[part])
        begins = np.repeat(self._parts.starts, np.diff(self._token_bounds))
        return starts + begins, ends + begins

    @cached_property
    def words(self) -> np.ndarray:
        """Number (n_tokens,) int64 of each token's word in its text.

        Words are the caller's own, else what is between white space, and each added token.
        """
        per_part = np.diff(self._token_bounds)
        if self._parts.words:
            return np.repeat(self._parts.words, per_part)
        spaces = np.cumsum(self._of_piece("words")) - self._of_piece("words")
        number = np.repeat(spaces, self._count) + self._of_token("before")
        part = np.repeat(np.arange(len(per_part)), per_part)
        word = np.cumsum(np.append(False, (np.diff(number) != 0) | (np.diff(part) != 0)))
        return word[: len(number)] - np.repeat(np.append(word, 0)[self.bounds[:-1]], np.diff(self.bounds))


class Ids:
    """Token ids that the caller gave, beside texts: in place of `Segments`, but only with ids.

    Args:
        sequences: (length,) token ids of each.
    """

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.ids = np.concatenate(sequences)
        self.bounds = np.append(0, np.cumsum([len(ids) for ids in sequences]))

    def __getattr__(self, name: str) -> Any:
        if name in ("tokens", "spans", "words"):
            raise ValueError("offsets, words and tokens: expected texts, got token ids")
        raise AttributeError(name)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`starts[i], starts[i] + 1, ...` of each `i`, `counts[i]` of them, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
