"""The parts of a text: its added tokens, and what is between them, lowercased if that is asked for. Needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from transformers import AddedToken
from transformers.tokenization_python import Trie

from .alignment import lowercase, lowercase_origins


@dataclass
class Parts:
    """Stretches of texts, each of which is tokenized alone.

    Attributes:
        texts: what is tokenized of each part.
        starts: where each part begins in the caller's string, or word.
        sizes: number of parts of each text.
        added: id of the added token that a part is.
        origins: index in the caller's stretch of each character of a part, if lowercasing has moved some.
        words: number of each part's word, if the caller gave words; else empty.
    """

    texts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    added: dict[int, int] = field(default_factory=dict)
    origins: dict[int, list[int]] = field(default_factory=dict)
    words: list[int] = field(default_factory=list)

    @classmethod
    def of_texts(cls, texts: list[str]) -> "Parts":
        """Whole texts, which contain no added token and stay as they are."""
        return cls(texts, [0] * len(texts), [1] * len(texts))


class AddedTokens:
    """Tokens that are found in a text before SentencePiece sees it, the leftmost first, of those the longest.

    Args:
        trie: of transformers' tokenizer; it splits texts, since it has ways of its own where tokens overlap.
        ids: id of each token.
        tokens: their `AddedToken`s by id, which say what is stripped beside a token, and whether it stands alone.
    """

    def __init__(self, trie: Trie, ids: Mapping[str, int], tokens: Mapping[int, AddedToken]) -> None:
        longest_first = sorted(trie._tokens, key=len, reverse=True)
        self._search = re.compile("|".join(map(re.escape, longest_first)) if longest_first else "(?!)").finditer
        self._trie = trie
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
        ends = accumulate(map(len, self._trie.split(text)), initial=0)
        spans = [list(span) for span in pairwise(ends)]
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

    def add_parts(self, parts: Parts, text: str, lower: bool, split: bool) -> int:
        """Add the parts of a text, and return how many they are.

        Args:
            parts: to add them to.
            text: the caller's string, or word.
            lower: lowercase it, but for the tokens.
            split: find the tokens; else they are text.
        """
        origins: list[int] | None = None
        if lower:
            text, origins = self.lowercase(text)
        spans = self.split(text) if split else [(0, len(text), None)] if text else []
        for start, end, added_id in spans:
            if added_id is not None:
                parts.added[len(parts.texts)] = added_id
            if origins is not None:
                parts.origins[len(parts.texts)] = [i - origins[start] for i in origins[start:end]]
            parts.texts.append(text[start:end])
            parts.starts.append(start if origins is None else origins[start])
        return len(spans)
