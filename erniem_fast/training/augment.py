"""Changed copies of texts for distillation, which have no labels: the teacher says what they are.

Words become [UNK] or another word of the same part of speech, and of some copies only a piece is kept (Tang et al.,
arXiv 1903.12136, section 3.3).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import NamedTuple

from ..inference.progress import progress_bar

# Scripts without spaces between words: a character, with the marks that belong to it, is one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u3099\u309a\u30fc"
_WORD = re.compile(rf"[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+")

Tagger = Callable[[Sequence[str]], Sequence[str]]
"""From the words of a text to their parts of speech, one each."""


@dataclass(frozen=True)
class Augmentation:
    """How copies differ from their texts.

    Attributes:
        unk: share of the words that become the unknown token.
        pos: share of the words that become another word of the same part of speech, from any text.
        ngram: share of the copies of which only a run of words is kept, of a random length at a random place.
        copies: of each text.
        seed: of all draws. A copy depends on it, on its number, on its text's place and on the texts' words.

    Raises:
        ValueError: a share that is none, shares of words that add up to more than 1, or no copy.
    """

    unk: float = 0.0
    pos: float = 0.0
    ngram: float = 0.0
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("unk", "pos", "ngram"):
            share = getattr(self, name)
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if self.unk + self.pos > 1:
            raise ValueError(f"unk and pos must add up to 1 at most, got {self.unk} and {self.pos}")
        if self.unk + self.pos + self.ngram == 0:
            raise ValueError("one of unk, pos and ngram must be above 0")
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1, got {self.copies}")

    @classmethod
    def parse(cls, text: str, copies: int = 1, seed: int = 0) -> "Augmentation":
        """Read "unk=0.1,ngram=0.1,pos=0.1".

        Raises:
            ValueError: the text is no such list.
        """
        known = [field.name for field in fields(cls) if field.type is float]
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                share = float(value)
            except ValueError:
                share = math.nan
            if name not in known or name in shares or math.isnan(share):
                raise ValueError(f"must read like unk=0.1,ngram=0.1,pos=0.1, each at most once, got {text!r}")
            shares[name] = share
        return cls(**shares, copies=copies, seed=seed)


class Words(NamedTuple):
    """A text in words.

    Attributes:
        words: of the text.
        gaps: what stands before each, and behind the last.
        tags: parts of speech of the words; None: not known.
    """

    words: list[str]
    gaps: list[str]
    tags: list[str] | None = None

    @classmethod
    def of(cls, text: str) -> "Words":
        """Split at spaces, and between the characters of scripts that have none between words."""
        found = list(_WORD.finditer(text))
        ends = [0, *(match.end() for match in found)]
        starts = [*(match.start() for match in found), len(text)]
        return cls([match[0] for match in found], [text[a:b] for a, b in zip(ends, starts, strict=True)])

    @classmethod
    def tagged(cls, text: str, tags: Sequence[str]) -> "Words":
        """Split at spaces, where the parts of speech are given.

        Raises:
            ValueError: there is not one tag a word.
        """
        found = list(re.finditer(r"\S+", text))
        if len(found) != len(tags):
            raise ValueError(
                f"parts of speech must be one a word: {len(tags)} for {len(found)} words between spaces, of "
                f"{text!r:.80}"
            )
        ends = [0, *(match.end() for match in found)]
        starts = [*(match.start() for match in found), len(text)]
        gaps = [text[a:b] for a, b in zip(ends, starts, strict=True)]
        return cls([match[0] for match in found], gaps, list(tags))

    def join(self) -> str:
        """The text."""
        return self.gaps[0] + "".join(word + gap for word, gap in zip(self.words, self.gaps[1:], strict=True))


def augment(
    samples: Sequence[Sequence[str]],
    augmentation: Augmentation,
    unk_token: str,
    *,
    tags: Sequence[Sequence[Sequence[str]]] | None = None,
    tagger: Tagger | None = None,
    show_progress: bool = False,
) -> list[list[tuple[str, ...]]]:
    """Copies of each sample, in order; each text of a sample is changed by itself.

    A copy may happen to be the text itself. What is left of a text is never empty, unless it was.

    Args:
        samples: of each its texts: one, or two of a pair.
        augmentation: how the copies differ.
        unk_token: of the tokenizer, which reads it as one token.
        tags: parts of speech of each text's words, as its spaces divide them. Needed for `pos`, unless:
        tagger: that gives them; it gets words divided at spaces, and between characters of scripts without spaces.
        show_progress: show a bar on stderr.

    Raises:
        ValueError: `pos` without tags and tagger; tags that are not one a word.
    """
    if augmentation.pos and tags is None and tagger is None:
        raise ValueError(
            "pos needs the parts of speech of the words: tags of the data, or a tagger (words of a text to their "
            "tags); got neither"
        )
    split = [
        [_split(text, None if tags is None else tags[index][place], tagger if augmentation.pos else None)
         for place, text in enumerate(sample)]
        for index, sample in enumerate(samples)
    ]  # fmt: skip
    by_tag: dict[str, dict[str, None]] = {}
    if augmentation.pos:
        for one in (words for sample in split for words in sample):
            for word, tag in zip(one.words, one.tags or (), strict=True):
                by_tag.setdefault(tag, {})[word] = None
    choices = {tag: list(words) for tag, words in by_tag.items()}
    copies = []
    with progress_bar(len(split), "Augmenting", " texts", show_progress) as bar:
        for index, sample in enumerate(split):
            copies.append(
                [_copy(sample, augmentation, unk_token, choices, Random(f"{augmentation.seed}/{index}/{number}"))
                 for number in range(augmentation.copies)]
            )  # fmt: skip
            bar.update()
    return copies


def _split(text: str, tags: Sequence[str] | None, tagger: Tagger | None) -> Words:
    if tags is not None:
        return Words.tagged(text, tags)
    words = Words.of(text)
    if tagger is None:
        return words
    found = list(tagger(words.words))
    if len(found) != len(words.words):
        raise ValueError(f"tagger must give one tag a word, got {len(found)} for {len(words.words)} words")
    return words._replace(tags=found)


def _copy(
    sample: Sequence[Words], augmentation: Augmentation, unk_token: str, choices: dict[str, list[str]], draw: Random
) -> tuple[str, ...]:
    texts = []
    for one in sample:
        words, gaps = list(one.words), one.gaps
        for place, word in enumerate(words):
            chance = draw.random()
            if chance < augmentation.unk:
                words[place] = unk_token
            elif chance < augmentation.unk + augmentation.pos and one.tags is not None:
                words[place] = _other(word, choices[one.tags[place]], draw)
        if words and draw.random() < augmentation.ngram:
            length = draw.randint(1, len(words))
            start = draw.randint(0, len(words) - length)
            words, gaps = words[start : start + length], ["", *gaps[start + 1 : start + length], ""]
        texts.append(Words(words, gaps).join())
    return tuple(texts)


def _other(word: str, choices: list[str], draw: Random) -> str:
    """Another word, or the same one if there is no other."""
    place = draw.randrange(len(choices))
    return choices[place] if choices[place] != word else choices[place - 1]
