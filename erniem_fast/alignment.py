"""Spans in the caller's string of what SentencePiece sees: text that is lowercased, then normalised. Needs no torch.

A span is that of the characters which a token comes from, so that two tokens of one ligature share its span. White
space around it is left out, and so are characters that normalise to nothing.
"""

from itertools import chain

import numpy as np
import sentencepiece as spm

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
    text: str, processor: spm.SentencePieceProcessor, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spans in `text`, from spans (n,) int64 in the normalised text, none of which begins or ends with "▁"."""
    _, offsets = processor.normalize(text, with_offsets=True)
    # The normaliser replaces short runs of characters. places[i]: begin of the run that character i comes from.
    places = np.array(offsets)
    is_begin = np.append(True, places[1:] != places[:-1])
    after = np.append(places[is_begin][1:], len(text))[np.cumsum(is_begin) - 1]
    # A lone "▁" has an empty span where the next word begins, unless it comes out of a character ("ﷺ" has four words).
    inside = (starts == ends) & (starts > 1) & (places[starts - 1] == places[starts])
    first = places[starts]
    last = np.where((ends > starts) | inside, after[np.maximum(ends - 1, 0)], first)
    for i in np.flatnonzero(last - places[np.maximum(ends - 1, 0)] > 1):
        if last[i] > first[i]:
            run_start = int(places[ends[i] - 1])
            last[i] = run_start + _visible_length(text[run_start : last[i]], processor)
    return first, last


def _visible_length(run: str, processor: spm.SentencePieceProcessor) -> int:
    """Length of a run without the characters at its end that normalise to nothing."""
    whole = processor.normalize(run)
    return next((n for n in range(1, len(run)) if processor.normalize(run[:n]) == whole), len(run))
