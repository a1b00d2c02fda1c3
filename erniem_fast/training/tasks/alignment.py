"""Tags of words and of characters, laid on tokens."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ...files.records import listing
from ...inference.tokens import Tokens
from .conll import OUTSIDE

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"
)
"""A character of Thai, Lao, Burmese, Khmer, kana or Han, or of their punctuation: these are written without spaces."""


class Span(NamedTuple):
    """An entity of a text.

    Attributes:
        start, end: its characters, without `end`.
        label: its kind, without a prefix.
    """

    start: int
    end: int
    label: str


class Tagged(NamedTuple):
    """Tokens of a sentence or a text, and its tags.

    Attributes:
        ids: (length,) int32, without special tokens.
        unit: (length,) int64, the tag that each token has to tell, as a place in `tags`, or -1.
        inner: (length,) int64, likewise the tag that a token goes on with; -1 where that does not count.
        tags: one a word of a sentence, or one a token of a text.
    """

    ids: np.ndarray
    unit: np.ndarray
    inner: np.ndarray
    tags: list[str]


def spaced(words: Sequence[str]) -> list[str]:
    """Words with the space before them that their script writes, so that they get the tokens which they have in text.

    There is none before the first word, and between letters of scripts without spaces.
    """
    found, last = [], ""
    for word in words:
        is_glued = not last or (UNSPACED.match(word) is not None and UNSPACED.match(last[-1]) is not None)
        found.append(word if is_glued else f" {word}")
        last = word or last
    return found


def of_words(words: Sequence[str], ids: Sequence[np.ndarray], tags: Sequence[str], space: int | None) -> Tagged:
    """Tokens of words; the first of each that is more than a space tells its tag.

    In scripts without spaces the others go on with it: who reads a text there has no words, but tokens.

    Args:
        words: as `spaced` gives them.
        ids: (length,) int32, tokens of each word.
        tags: one a word.
        space: id of the token that stands for a space alone, which a tokenizer may put before every word; None: there
            is none.
    """
    kept, units, inners = [], [], []
    for number, (word, own) in enumerate(zip(words, ids, strict=True)):
        first = int(len(own) > 1 and own[0] == space)
        if first and number and not word.startswith(" "):  # there is no space in the script
            own, first = own[1:], 0
        unit, inner = np.full(len(own), -1), np.full(len(own), -1)
        unit[first : first + 1] = number
        if UNSPACED.match(word.lstrip(" ")):
            inner[first + 1 :] = number
        kept.append(own)
        units.append(unit)
        inners.append(inner)
    return Tagged(np.concatenate(kept), np.concatenate(units), np.concatenate(inners), list(tags))


def of_text(tokens: Tokens, spans: Sequence[Span]) -> tuple[Tagged, int]:
    """Tokens of a text, each with a tag in IOB2.

    A token without characters, which stands for a space, is in an entity if it lies between its characters.

    Args:
        tokens: of the text.
        spans: its entities in order, which don't overlap.

    Returns:
        The tokens, and the number of entities that begin or end within one.
    """
    tags = [OUTSIDE] * len(tokens.ids)
    inexact = 0
    starts, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
    for span in spans:
        space = (starts == ends) & (span.start < starts) & (starts < span.end)
        own = np.flatnonzero(((starts < span.end) & (ends > span.start) & (starts < ends)) | space)
        inexact += not len(own) or bool(starts[own[0]] < span.start or ends[own[-1]] > span.end)
        prefix = "B"
        for token in own.tolist():
            if tags[token] == OUTSIDE:  # else the entity before has it
                tags[token] = f"{prefix}-{span.label}"
                prefix = "I"
    return Tagged(tokens.ids, np.arange(len(tags)), np.full(len(tags), -1), tags), inexact


def read_spans(column: str, text: str, entities: Any) -> tuple[Span, ...]:
    """Entities of a text, in order, without the white space around them.

    Args:
        column: name of their column in errors.
        text: the text.
        entities: a list of {"start": ..., "end": ..., "label": ...}.

    Raises:
        ValueError: one is malformed, or two overlap. The message follows the number of the line.
    """
    if not isinstance(entities, list):
        raise ValueError(f"has {column!r} of type {type(entities).__name__}, not a list")
    spans = sorted(_span(text, entity) for entity in entities)
    for one, two in pairwise(spans):
        if two.start < one.end:
            raise ValueError(f"has entities that overlap: {tuple(one)} and {tuple(two)}")
    return tuple(spans)


def _span(text: str, entity: Any) -> Span:
    if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
        got = listing(list(map(str, entity))) if isinstance(entity, Mapping) else type(entity).__name__
        raise ValueError(f"has an entity of {got}; expected start, end and label")
    start, end, label = entity["start"], entity["end"], entity["label"]
    if any(isinstance(value, bool) or not isinstance(value, int) for value in (start, end)):
        raise ValueError(f"has an entity from {start!r:.40} to {end!r:.40}; expected numbers of characters")
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise ValueError(f"has an entity from {start} to {end} that is no part of the text of {len(text)} characters")
    if not isinstance(label, str) or not label:
        raise ValueError(f"has an entity with the label {label!r:.80}; expected a string")
    inner = text[start:end]
    return Span(end - len(inner.lstrip()), start + len(inner.rstrip()), label)
