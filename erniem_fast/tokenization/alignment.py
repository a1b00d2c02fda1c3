"""Spans in the caller's string of what SentencePiece sees: text that is lowercased, then normalised. Needs no torch.

A span is that of the characters which a token comes from, so that two tokens of one ligature share its span. White
space around it is left out, and so are characters that normalise to nothing.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import sentencepiece as spm

Span = tuple[int, int]
"""Start and end of a stretch; the end is the place behind it."""

UNDERLINE = "▁"
"""SentencePiece's mark for the space before a word."""


def lowercase(text: str) -> str:
    """Each character lowercased alone: a final "Σ" becomes "σ", not "ς". Only "İ" becomes two characters."""
    return text.replace("Σ", "σ").lower()


def lowercase_origins(text: str) -> list[int] | None:
    """Index in `text` of each character of `lowercase(text)`; None if they stand at the same places."""
    if len(lowercase(text)) == len(text):
        return None
    return list(chain.from_iterable([i] * len(lowercase(char)) for i, char in enumerate(text)))


def through_origins(origins: list[int], starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans in the text before `lowercase`, from spans (n,) int64 in the text after it."""
    places = np.array([*origins, origins[-1] + 1 if origins else 0])
    first = places[starts]
    return first, np.where(ends > starts, places[np.maximum(ends - 1, 0)] + 1, first)


def through_normaliser(
    texts: Sequence[str],
    processor: spm.SentencePieceProcessor,
    starts: np.ndarray,
    ends: np.ndarray,
    sizes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Spans in texts, from spans (n,) int64 in the normalised texts, none of which begins or ends with "▁".

    Args:
        texts: as the caller wrote them.
        processor: SentencePiece model.
        starts, ends: the spans of all texts, one after the other.
        sizes: (len(texts),) number of each text's spans.
    """
    offsets = [processor.normalize(text, with_offsets=True)[1] for text in texts]
    counts = np.fromiter(map(len, offsets), np.int64, len(texts))
    bounds = np.append(0, np.cumsum(counts))
    # The normaliser replaces short runs of characters. places[i]: begin of the run that character i comes from.
    places = np.fromiter(chain.from_iterable(offsets), np.int64, bounds[-1])
    is_begin = np.append(True, places[1:] != places[:-1])
    is_begin[bounds[:-1]] = True
    run = np.cumsum(is_begin) - 1
    run_ends = np.append(places[is_begin][1:], 0)
    run_ends[run[bounds[1:] - 1]] = [*map(len, texts)]
    row = np.repeat(bounds[:-1], sizes)
    start, last = row + starts, row + np.maximum(ends - 1, 0)
    # A lone "▁" has an empty span where the next word begins, unless it comes out of a character ("ﷺ" has four words).
    inside = (starts == ends) & (starts > 1) & (places[start - 1] == places[start])
    first = places[start]
    after = np.where((ends > starts) | inside, run_ends[run[last]], first)
    for i in np.flatnonzero((after - places[last] > 1) & (after > first)):
        run_start = int(places[last[i]])
        text = texts[np.searchsorted(bounds, start[i], side="right") - 1]
        after[i] = run_start + _visible_length(text[run_start : after[i]], processor)
    return first, after


def _visible_length(run: str, processor: spm.SentencePieceProcessor) -> int:
    """Length of a run without the characters at its end that normalise to nothing."""
    whole = processor.normalize(run)
    return next((n for n in range(1, len(run)) if processor.normalize(run[:n]) == whole), len(run))
