"""Which tokens are masked and what they become."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_tokenizer import build
from helpers.objectives import MARKERS, MASK, ORDINARY, SPECIAL, VOCAB, TinyTokenizer, rng, sentences, translations
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from erniem_fast.training.objectives import BTMLM, CAMLM, MMLM, TLM, XLMMLM, XLMTLM, MLMWithNSP, Objective
from erniem_fast.training.objectives.vocabulary import Vocabulary

MANY = [list(ORDINARY)[:60]] * 300
"""18,000 tokens."""


def rate(part: int, whole: int, expected: float) -> bool:
    """True within 5 standard deviations."""
    return abs(part - expected * whole) < 5 * (whole * expected * (1 - expected)) ** 0.5


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_rates(probability: float, whole_word: bool) -> None:
    """15 % of the tokens, and of these 80 % [MASK], 10 % random tokens and 10 % themselves."""
    batch = MMLM(TinyTokenizer(), mask_probability=probability, whole_word=whole_word)(MANY, rng())
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    chosen = labels != -100
    number = int(chosen.sum())
    tokens = sum(map(len, MANY))
    assert rate(number // (1 + whole_word), tokens // (1 + whole_word), probability)  # words have two tokens
    masked, kept = (ids == MASK) & chosen, (ids == labels) & chosen
    drawn = chosen & ~masked & ~kept
    same = 0.1 / len(ORDINARY)  # of the random tokens
    assert rate(int(masked.sum()), number, 0.8)
    assert rate(int(kept.sum()), number, 0.1 + same)
    assert rate(int(drawn.sum()), number, 0.1 - same)
    assert set(ids[drawn].tolist()) <= set(ORDINARY)
    assert len(ids[drawn].unique()) > 80
    assert torch.equal(ids[~chosen], torch.tensor([[0, *row, 2] for row in MANY]).flatten()[~chosen])


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_each_branch_alone(mask_share: float, random_share: float) -> None:
    batch = MMLM(TinyTokenizer(), mask_probability=0.5, mask_share=mask_share, random_share=random_share)(MANY, rng())
    chosen = batch["labels"] != -100
    ids, labels = batch["input_ids"][chosen], batch["labels"][chosen]
    assert bool((ids == MASK).all()) == (mask_share == 1)
    assert bool((ids == labels).all()) == (mask_share == random_share == 0)
    assert not torch.isin(ids, torch.tensor([i for i in SPECIAL if i != MASK])).any()


@settings(max_examples=10)
@given(
    samples=st.lists(translations, min_size=1, max_size=5), whole_word=st.booleans(),
    seed=st.integers(0, 2**32), probability=st.floats(0, 1),
)  # fmt: skip
def test_every_objective(
    samples: list[tuple[list[int], list[int]]], whole_word: bool, seed: int, probability: float
) -> None:
    """The same generator gives the same batch; special tokens are never predicted; labels are the tokens themselves."""
    for cls in (MMLM, TLM, CAMLM, BTMLM, MLMWithNSP):
        objective = cls(TinyTokenizer(), mask_probability=probability, whole_word=whole_word)
        given_samples: Any = samples if cls.reads == "pairs" else [first for first, _ in samples]
        batch, again = (objective(given_samples, rng(seed)) for _ in range(2))
        assert_equal(batch, again)
        labels = batch["labels"][0]
        assert not torch.isin(labels, torch.tensor(SPECIAL)).any()
        unmasked = torch.where(labels == -100, batch["input_ids"][0], labels)
        assert set(unmasked.tolist()) <= {token for pair in samples for side in pair for token in side} | set(SPECIAL)
        lengths = batch["cu_seq_lens_q"].diff()
        assert lengths.sum() == batch["input_ids"].shape[1] == batch["position_ids"].shape[1] == labels.shape[0]
        assert (lengths > 0).all()
        assert lengths.max() == batch["max_length_q"]
        assert objective.num_cut_samples == 0


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_another_generator_gives_another_batch() -> None:
    objective, generator = MMLM(TinyTokenizer()), rng()
    one, other = (objective(MANY[:9], generator) for _ in range(2))
    assert not torch.equal(one["labels"], other["labels"])


@settings(max_examples=10)
@given(samples=st.lists(sentences, min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_whole_words_are_never_split(samples: list[list[int]], seed: int) -> None:
    """All tokens of a word are chosen or none; a sentence's first token starts one in any case."""
    batch = MMLM(TinyTokenizer(), mask_probability=0.5, whole_word=True)(samples, rng(seed))
    chosen, offsets = batch["labels"][0] != -100, batch["cu_seq_lens_q"].tolist()
    for sample, (begin, end) in zip(samples, pairwise(offsets), strict=True):
        inner = chosen[begin + 1 : end - 1]
        for place in range(1, len(sample)):
            if sample[place] % 2:  # odd ids continue a word
                assert inner[place] == inner[place - 1]


def test_words_by_a_function() -> None:
    """Of each sentence's tokens, as a segmenter of Chinese gives them; [CLS] and [SEP] are not asked for."""
    seen = []

    def pairs_of_tokens(sentence: list[int]) -> range:
        seen.append(sentence)
        return range(0, len(sentence), 2)

    objective = TLM(TinyTokenizer(), mask_probability=0.5, whole_word=pairs_of_tokens)
    samples = [([4, 6, 8, 10], [12, 14, 16])] * 30
    chosen = (objective(samples, rng())["labels"][0] != -100).reshape(30, -1)
    assert seen == [side for sample in samples for side in sample]
    assert (chosen[:, 1] == chosen[:, 2]).all()
    assert (chosen[:, 3] == chosen[:, 4]).all()
    assert (chosen[:, 7] == chosen[:, 8]).all()
    assert any((chosen[:, one] != chosen[:, other]).any() for one, other in ((2, 3), (8, 9), (4, 7)))
    objective = MMLM(TinyTokenizer(), whole_word=lambda sentence: [len(sentence)])
    with pytest.raises(ValueError, match=r"whole_word must give places in the sentence, of 2 tokens, got \[2\]"):
        objective([[4, 6]], rng())


def words(tokenizer: Any, text: str) -> list[list[str]]:
    """Words of a text, as pieces."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts, ends = Vocabulary(tokenizer).word_bounds
    found: list[list[str]] = []
    for place, (token, piece) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
        if not place or starts[token] or ends[ids[place - 1]]:
            found.append([])
        found[-1].append(piece)
    return found


def test_words_of_ernie_m() -> None:
    found = words(build(), "The unbelievable weather 今日は good")
    assert found[0] == ["▁The"]
    assert "".join(found[1]) == "▁unbelievable"
    assert len(found[1]) > 1
    assert found[2:] == [["▁weather"], ["▁"], ["今"], ["日"], ["は"], ["▁good"]]


def test_words_of_word_piece() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##bel", "##ie", "good", "中", "国", "##人"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    assert words(tokenizer, "unbelie good 中国 un") == [["un", "##bel", "##ie"], ["good"], ["中"], ["国"], ["un"]]
    special = Vocabulary(tokenizer).special_tokens
    assert special == ([2], [3], [], [3])


def test_words_of_xlm() -> None:
    """XLM's pieces say where a word ends."""
    vocabulary = ["<s>", "</s>", "<pad>", "<unk>", "<special1>", "un", "bel</w>", "good</w>"]
    tokenizer = TinyTokenizer()
    tokenizer.convert_ids_to_tokens = lambda ids: [vocabulary[i] if i < 8 else f"{i}</w>" for i in ids]  # type: ignore[method-assign]
    starts, ends = Vocabulary(tokenizer).word_bounds
    assert not starts.any()
    assert ends[[5, 6, 7]].tolist() == [False, True, True]


def test_special_tokens_of_a_pair() -> None:
    """Of two [SEP] in the middle, one is each sentence's."""
    assert Vocabulary(TinyTokenizer()).special_tokens == ([0], [2], [2], [2])
    assert Vocabulary(build()).special_tokens == ([0], [2], [2], [2])


def test_long_samples_are_cut_and_counted() -> None:
    """The longer sentence first, then both alike."""
    for first, second, kept in [(20, 3, (9, 3)), (3, 20, (3, 9)), (20, 21, (6, 6)), (6, 7, (6, 6)), (5, 7, (5, 7))]:
        objective = TLM(TinyTokenizer(), max_length=16, mask_probability=0)
        batch = objective([([4] * first, [6] * second)], rng())
        ids = batch["input_ids"][0]
        assert (int((ids == 4).sum()), int((ids == 6).sum())) == kept
        over = first + second - sum(kept)
        assert (objective.num_cut_samples, objective.num_cut_tokens) == (int(over > 0), over)
    objective = MMLM(TinyTokenizer())  # the tokenizer takes 64
    assert objective([[4] * 100, [6] * 62], rng())["max_length_q"] == 64
    assert (objective.num_cut_samples, objective.num_cut_tokens) == (1, 38)
    objective = BTMLM(TinyTokenizer(), placeholder_share=1.0, language_markers=MARKERS)
    assert objective([[4] * 100], rng())["max_length_q"] <= 64
    assert objective.num_cut_samples == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_probability": 1.5}, "mask_probability must lie between 0 and 1, got 1.5"),
        ({"mask_share": 0.8, "random_share": 0.3}, "mask_share and random_share must be at most 1 together"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMLM(TinyTokenizer(), **options)


def test_bad_samples() -> None:
    objective: Objective = MMLM(TinyTokenizer())
    with pytest.raises(ValueError, match="samples must hold at least one, got none"):
        objective([], rng())
    with pytest.raises(ValueError, match=rf"samples\[1\] must hold ids of the tokenizer, in \[0, {VOCAB}\), got 100"):
        objective([[5], [7, 100]], rng())
    with pytest.raises(ValueError, match="max_length must leave room for a token"):
        MMLM(TinyTokenizer(), max_length=2)([[5]], rng())
    for options in ({"placeholder_share": 0}, {"temperature": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            BTMLM(TinyTokenizer(), **options)  # type: ignore[arg-type]
    tokenizer = TinyTokenizer()
    tokenizer.mask_token_id = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="tokenizer must have a mask token, got TinyTokenizer without one"):
        MMLM(tokenizer)


@pytest.mark.parametrize(
    ("cls", "sample", "message"),
    [
        (MMLM, "a text", r"must be a sentence, a list of token ids; got 'a text'"),
        (MMLM, ([4], [6]), "must be a sentence, a list of token ids; got"),
        (MMLM, torch.tensor([4]), "must be a sentence, a list of token ids; got tensor"),
        (TLM, [4, 6, 8], r"must be a pair of lists of token ids; got \[4, 6, 8\]"),
        (CAMLM, ("one", "two"), "must be a pair of lists of token ids; got"),
        (XLMMLM, [4, 6], r"with the language of each sentence: \(ids, language\); got \[4, 6\]"),
        (XLMTLM, ([4], [6]), "must be a pair of lists of token ids, with the language"),
    ],
)
def test_samples_of_another_form(cls: Any, sample: Any, message: str) -> None:
    good: Any = [4, 6] if cls.reads == "sentences" else ([4], [6])
    if cls.with_languages:
        good = (good, 0) if cls.reads == "sentences" else tuple((side, 0) for side in good)
    objective = cls(TinyTokenizer())
    objective([good], rng())
    with pytest.raises(TypeError, match=rf"samples\[1\] {message}" if "must" in message else message):
        objective([good, sample], rng())


def test_arrays_are_sentences() -> None:
    one, other = (MMLM(TinyTokenizer())([sample], rng()) for sample in (np.array([4, 6, 8]), [4, 6, 8]))
    assert_equal(one, other)


def test_empty_sentences() -> None:
    """Special tokens alone."""
    for cls in (MMLM, BTMLM):
        assert (cls(TinyTokenizer(), mask_probability=1)([[]], rng())["labels"] == -100).all()
    batch = CAMLM(TinyTokenizer(), mask_probability=1)([([], [4])], rng())
    assert batch["input_ids"].tolist() == [[0, 2, MASK]]
