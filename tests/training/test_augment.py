"""Augmentation: which words change into what, how often, and from the seed alone."""

import json
from pathlib import Path

import pytest
from helpers import family_folders, golden_tokenizer
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.training.augment import Augmentation, Words, augment

LINES = Path(ROOT, "erniem_fast/demo_data/texts.jsonl").read_text("utf-8").splitlines()
TEXTS = [json.loads(line)["text"] for line in LINES]
UNK = "[UNK]"


@settings(max_examples=50)
@given(st.text())
def test_a_text_is_its_words_and_gaps(text: str) -> None:
    words = Words.of(text)
    assert words.join() == text
    assert all(word.strip() == word and word for word in words.words)
    assert not "".join(words.gaps).strip()


def test_words_of_scripts_without_spaces() -> None:
    assert Words.of("Ja, 今日は 天気!").words == ["Ja,", "今", "日", "は", "天", "気", "!"]
    assert Words.of("ที่นี่").words == ["ที่", "นี่"], "marks stay with their characters"
    assert Words.of(" \n").words == []


def test_shares_of_words() -> None:
    """Of 20 copies of 96 texts; 5 standard deviations of the binomial distribution."""
    made = augment([(text,) for text in TEXTS], Augmentation(unk=0.3, copies=20, seed=1), UNK)
    assert len(made) == len(TEXTS)
    assert all(len(copies) == 20 for copies in made)
    changed = total = 0
    for text, copies in zip(TEXTS, made, strict=True):
        for (copy,) in copies:
            before, after = Words.of(text), Words.of(copy.replace(UNK, " \x00 "))
            total += len(before.words)
            changed += copy.count(UNK)
            kept = [word for word in after.words if word != "\x00"]
            rest = iter(before.words)
            assert all(word in rest for word in kept), "the other words are there, in order"
    assert abs(changed / total - 0.3) < 5 * (0.3 * 0.7 / total) ** 0.5


def test_pieces_are_runs_of_words_of_any_length() -> None:
    text = "one  two three, four\tfive"
    made = [copy[0] for copy in augment([(text,)], Augmentation(ngram=1.0, copies=300), UNK)[0]]
    assert all(copy in text and copy.strip() == copy for copy in made)
    lengths = [len(copy.split()) for copy in made]
    assert {lengths.count(n) > 30 for n in range(1, 6)} == {True}
    whole = augment([(text,)], Augmentation(ngram=0.25, copies=400), UNK)[0]
    pieces = sum(copy[0] != text for copy in whole)  # a fifth of the pieces is the whole text
    assert abs(pieces / 400 - 0.2) < 5 * (0.2 * 0.8 / 400) ** 0.5


def test_words_change_into_others_of_their_part_of_speech() -> None:
    samples = [("the cat sat", "a dog ran"), ("two  birds flew", "they sang")]
    tags = [(("D", "N", "V"), ("D", "N", "V")), (("D", "N", "V"), ("P", "V"))]
    kinds = {"D": {"the", "a", "two"}, "N": {"cat", "dog", "birds"}, "V": {"sat", "ran", "flew", "sang"}, "P": {"they"}}
    made = augment(samples, Augmentation(pos=1.0, copies=50), UNK, tags=tags)
    seen = set()
    for sample, its_tags, copies in zip(samples, tags, made, strict=True):
        for copy in copies:
            for text, text_tags, new in zip(sample, its_tags, copy, strict=True):
                for word, tag, other in zip(text.split(), text_tags, new.split(), strict=True):
                    assert other in kinds[tag]
                    assert (other != word) == (tag != "P"), "another word, where there is one"
                    seen.add(other)
    assert seen == set().union(*kinds.values())
    assert all("  " in copy[0] for copy in made[1]), "gaps stay"

    def by_length(words: object) -> list[str]:
        return [str(len(word)) for word in words]  # type: ignore[attr-defined]

    for (copy,) in augment([("ab cd ef",), ("xyz",)], Augmentation(pos=1.0, copies=9), UNK, tagger=by_length)[0]:
        assert all(word in ("ab", "cd", "ef") for word in copy.split())


def test_copies_come_from_the_seed_alone() -> None:
    samples = [(text,) for text in TEXTS[:8]]
    asked = Augmentation(unk=0.2, ngram=0.2, copies=3, seed=5)
    made = augment(samples, asked, UNK)
    assert made == augment(samples, asked, UNK)
    assert made != augment(samples, Augmentation(unk=0.2, ngram=0.2, copies=3, seed=6), UNK)
    assert [one[:2] for one in made] == augment(samples, Augmentation(unk=0.2, ngram=0.2, copies=2, seed=5), UNK)
    assert made[:4] == augment(samples[:4], asked, UNK)
    assert len({copy for one in made for copy in one}) > 20


@pytest.mark.slow
def test_tokenizers_read_the_unknown_token_in_copies() -> None:
    for made in (golden_tokenizer.build(), *map(family_folders.tokenizer, ("Bert", "Roberta", "XLMRoberta", "XLM"))):
        (((copy,),),) = augment([("one two 今日 three",)], Augmentation(unk=1.0), made.unk_token)
        ids = made(copy, add_special_tokens=False)["input_ids"]
        assert ids.count(made.unk_token_id) == 5
    assert augment([("",), (" ",)], Augmentation(unk=1.0, ngram=1.0), UNK) == [[("",)], [(" ",)]]


def test_what_is_refused() -> None:
    assert Augmentation.parse("unk=0.1, ngram=0.2,pos=0.3", 3, 7) == Augmentation(0.1, 0.3, 0.2, 3, 7)
    for text in ("", "unk", "unk=x", "unk=nan", "word=0.1", "unk=0.1,unk=0.2", "copies=2", "unk=0.1,"):
        with pytest.raises(ValueError, match=r"must read like unk=0\.1,ngram=0\.1,pos=0\.1, each at most once, got"):
            Augmentation.parse(text)
    with pytest.raises(ValueError, match=r"unk must lie in \[0, 1\], got 1.5"):
        Augmentation.parse("unk=1.5")
    with pytest.raises(ValueError, match=r"unk and pos must add up to 1 at most, got 0.6 and 0.6"):
        Augmentation(unk=0.6, pos=0.6)
    with pytest.raises(ValueError, match="one of unk, pos and ngram must be above 0"):
        Augmentation()
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        Augmentation(unk=0.1, copies=0)
    with pytest.raises(ValueError, match="pos needs the parts of speech of the words: tags of the data, or a tagger"):
        augment([("a",)], Augmentation(pos=0.1), UNK)
    with pytest.raises(ValueError, match="parts of speech must be one a word: 1 for 2 words between spaces, of 'a b'"):
        augment([("a b",)], Augmentation(pos=0.1), UNK, tags=[[["N"]]])
    with pytest.raises(ValueError, match="tagger must give one tag a word, got 0 for 2 words"):
        augment([("a b",)], Augmentation(pos=0.1), UNK, tagger=lambda words: [])
