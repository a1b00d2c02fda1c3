"""The parts of a text: its added tokens, and what is between them, lowercased if that is asked for. Needs no torch."""

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from transformers import AddedToken

from .alignment import lowercase, lowercase_origins


class Part(NamedTuple):
    """A stretch of a text that is tokenized alone.

    Attributes:
        text: what is tokenized.
        start: where the stretch begins in the caller's string, or word.
        origins: index in the stretch of each character of `text`; None: `text` has the stretch's own places.
        added_id: id of the added token that it is, or None.
        word: number of the caller's word that it belongs to, or None.
    """

    text: str
    start: int = 0
    origins: list[int] | None = None
    added_id: int | None = None
    word: int | None = None


class AddedTokens:
    """Tokens that are found in a text before SentencePiece sees it, the leftmost first, of those the longest.

    Args:
        names: the tokens' text.
        ids: id of each.
        tokens: their `AddedToken`s by id, which say what is stripped beside a token, and whether it stands alone.
    """

    def __init__(self, names: Iterable[str], ids: Mapping[str, int], tokens: Mapping[int, AddedToken]) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        self._search = re.compile("|".join(map(re.escape, longest_first)) if longest_first else "(?!)").finditer
        self._ids = ids
        self._tokens = tokens

    def found_in(self, text: str) -> bool:
        """True if one of them is in the text."""
        return next(self._search(text), None) is not None

    def lowercase(self, text: str) -> tuple[str, list[int] | None]:
        """`text` lowercased but for the tokens, and the index in `text` of each character; None: the same ones."""
        cuts = self._cuts(text)
        stretches = [text[start:end] for start, end in pairwise(cuts)]
        lowered = [stretch if stretch in self._ids else lowercase(stretch) for stretch in stretches]
        if all(len(after) == len(before) for after, before in zip(lowered, stretches, strict=True)):
            return "".join(lowered), None
        origins: list[int] = []
        for start, before, after in zip(cuts, stretches, lowered, strict=False):
            moved = lowercase_origins(before) if after is not before else None
            origins.extend(start + i for i in (range(len(before)) if moved is None else moved))
        return "".join(lowered), origins

    def split(self, text: str) -> list[tuple[int, int, int | None]]:
        """Spans of the text's parts, with the id of the token that a part is, or None; none of them is empty."""
        spans = [list(span) for span in pairwise(self._cuts(text))]
        for i, span in enumerate(spans):
            token = self._tokens.get(self._ids.get(text[slice(*span)], -1))
            if token is None or span[0] == span[1]:
                continue
            left = spans[i - 1] if i > 0 and spans[i - 1][0] < spans[i - 1][1] else None
            right = spans[i + 1] if i + 1 < len(spans) else None
            left_char = text[left[1] - 1] if left else " "
            right_char = text[right[0]] if right and right[0] < right[1] else " "
            if token.rstrip and right:
                right[0] = right[1] - len(text[slice(*right)].lstrip())
            if token.lstrip and left:
                left[1] = left[0] + len(text[slice(*left)].rstrip())
            if token.single_word and left and left_char != " ":
                left[1], span[0] = span[1], span[1]
            elif token.single_word and right and right_char != " ":
                right[0], span[1] = span[0], span[0]
        return [(start, end, self._ids.get(text[start:end])) for start, end in spans if start < end]

    def _cuts(self, text: str) -> list[int]:
        cuts = {0, len(text)}
        for match in self._search(text):
            cuts.update(match.span())
        return sorted(cuts)

    def parts(self, text: str, lower: bool, split: bool, word: int | None = None) -> list[Part]:
        """Parts of a text.

        Args:
            text: the caller's string.
            lower: lowercase it, but for the tokens.
            split: find the tokens; else they are text.
            word: number of the caller's word that the text is, if it is one.
        """
        origins: list[int] | None = None
        source = text
        if lower:
            text, origins = self.lowercase(source)
        parts = []
        for start, end, added_id in self.split(text) if split else [(0, len(text), None)]:
            if origins is None:
                parts.append(Part(text[start:end], start, None, added_id, word))
            elif start < end:
                first = origins[start]
                moved = [i - first for i in origins[start:end]]
                parts.append(Part(text[start:end], first, moved, added_id, word))
        return parts
