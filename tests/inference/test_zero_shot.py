"""Zero-shot classification equals transformers' pipeline on the padded reference."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_tokenizer import build
from helpers.pairs import make
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import pipeline

import erniem_fast
from erniem_fast import PackedBatch, validation, zero_shot_classification
from erniem_fast.cli.verify import sample
from erniem_fast.inference import runs, zero_shot
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.zero_shot import ZeroShot

MAX_TOKENS = 64
NAMES = ("entailment", "neutral", "contradiction")
LABELS = ["politique", "économie et finances", "spōrt", "天気"]
TOKENIZER = build(model_max_length=MAX_TOKENS)
TEXTS = [text for _, text in sample()[::6]]
assert {len(ids) > MAX_TOKENS for ids in TOKENIZER(TEXTS, verbose=False)["input_ids"]} == {True, False}


def models(names: tuple[str, ...] = NAMES, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The reference and the fast model, whose logits differ enough between labels to be told apart."""
    plain, fast = make(
        "ErnieMForSequenceClassification", dtype, noise=0.2, vocab_size=len(TOKENIZER),
        max_position_embeddings=MAX_TOKENS + 2, num_labels=len(names), id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    return plain, fast


def pipe_of(plain: Any) -> Any:
    return pipeline("zero-shot-classification", plain, tokenizer=TOKENIZER, device="cpu")


def assert_same(found: Any, expected: Any) -> None:
    assert [result["sequence"] for result in found] == [result["sequence"] for result in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=1e-5)
        scores = dict(zip(other["labels"], other["scores"], strict=True))
        # Scores that rounding can't tell apart may change places.
        np.testing.assert_allclose([scores[label] for label in one["labels"]], other["scores"], rtol=0, atol=2e-5)
        assert sorted(one["labels"]) == sorted(other["labels"])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "names",
    [NAMES, ("CONTRADICTION", "neutral", "Entailment"), ("not_entailment", "entailment"), ("entails", "other")],
    ids=str,
)
def test_equal_to_the_pipeline(names: tuple[str, ...], multi_label: bool) -> None:
    plain, fast = models(names)
    options = {"hypothesis_template": "Ce texte parle de {}.", "multi_label": multi_label}
    classify = zero_shot_classification(fast, TOKENIZER, batch_tokens=200)
    assert_same(classify(TEXTS, LABELS, **options), pipe_of(plain)(TEXTS, LABELS, batch_size=4, **options))


def test_equal_to_the_pipeline_in_its_other_forms() -> None:
    plain, fast = models()
    classify, pipe = zero_shot_classification(fast, TOKENIZER), pipe_of(plain)
    one, other = classify(TEXTS[0], "travel, economy ,sport"), pipe(TEXTS[0], "travel, economy ,sport")
    assert isinstance(one, dict)
    assert_same([one], [other])
    assert sum(one["scores"]) == pytest.approx(1)
    assert_same(classify(TEXTS[:1], ["sport"]), pipe(TEXTS[:1], ["sport"]))
    assert_same(classify((text for text in TEXTS[:2]), LABELS), pipe(TEXTS[:2], LABELS))
    assert classify([], LABELS) == []


def test_a_model_that_names_no_entailment(caplog: pytest.LogCaptureFixture) -> None:
    plain, fast = models(("LABEL_0", "LABEL_1", "LABEL_2"))
    validation._warned.clear()
    with caplog.at_level(logging.WARNING, "erniem_fast"):
        classify = zero_shot_classification(fast, TOKENIZER)
    assert "LABEL_0, LABEL_1, LABEL_2" in caplog.text
    for multi_label in (False, True):
        expected = pipe_of(plain)(TEXTS[:3], LABELS, multi_label=multi_label)
        assert_same(classify(TEXTS[:3], LABELS, multi_label=multi_label), expected)


def test_every_text_and_hypothesis_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = models()
    tokenizer = build()
    seen: list[str] = []
    call = type(tokenizer).__call__

    def counted(self: Any, texts: Any, *arguments: Any, **options: Any) -> Any:
        seen.extend(texts if isinstance(texts, list) else [])  # a str asks what the tokenizer puts around texts
        return call(self, texts, *arguments, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    zero_shot_classification(fast, tokenizer)(TEXTS[:3], LABELS)
    assert sorted(seen) == sorted([*TEXTS[:3], *(f"This example is {label}." for label in LABELS)])


SIDES = {side: build(truncation_side=side) for side in ("left", "right")}
WORDS = st.lists(st.sampled_from(["Haus", "la", "天気", "Zug", "rue"]), max_size=30).map(" ".join)


@settings(max_examples=30)
@given(
    texts=st.lists(WORDS, min_size=1, max_size=4),
    labels=st.lists(WORDS.map(lambda words: words[:20]).filter(str.strip), min_size=1, max_size=3, unique=True),
    max_tokens=st.integers(30, 60),
    side=st.sampled_from(list(SIDES)),
)
@example(texts=["Haus Zug rue " * 12, "Zug"], labels=["la la la la la", "Zug"], max_tokens=30, side="left")
@example(texts=["Haus Zug rue " * 12, "Zug"], labels=["la la la la la", "Zug"], max_tokens=30, side="right")
def test_pairs_are_the_tokenizer_s(texts: list[str], labels: list[str], max_tokens: int, side: str) -> None:
    tokenizer, fast = SIDES[side], models()[1]
    task = ZeroShot(
        fast, tokenizer, Runner(fast), candidate_labels=labels, hypothesis_template="{}", max_tokens=max_tokens
    )
    cut = 0
    read = task.tokenize(texts)
    for text, found in zip(texts, read, strict=True):
        own = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        expected = [
            tokenizer(text, label, truncation="only_first", max_length=max_tokens)["input_ids"]
            for label in labels if own
        ]  # fmt: skip
        assert [row.ids.tolist() for row in task.rows(found)] == expected
        assert task.size(found) == sum(map(len, expected))
        cut += any(own + len(tokenizer(label, add_special_tokens=False)["input_ids"]) + 4 > max_tokens
                   for label in labels)  # fmt: skip
    assert task.truncated == cut


def test_texts_without_tokens_get_no_labels() -> None:
    _, fast = models()
    found = zero_shot_classification(fast, TOKENIZER)(["", "Hello", " \n\t", "\u200b"], LABELS)
    for text, result in zip(["", "Hello", " \n\t", "\u200b"], found, strict=True):
        assert result["sequence"] == text
        assert len(result["labels"]) == len(result["scores"]) == (4 if text == "Hello" else 0)
    (alone,) = zero_shot_classification(fast, TOKENIZER)([""], ["sport"], multi_label=True)
    assert alone == {"sequence": "", "labels": [], "scores": []}


def test_a_long_hypothesis_cuts_the_text_only() -> None:
    plain, fast = models()
    classify = zero_shot_classification(fast, TOKENIZER)
    long = "a" + " b" * 50
    assert_same(classify(TEXTS, [long, "sport"]), pipe_of(plain)(TEXTS, [long, "sport"]))
    with pytest.raises(ValueError, match=r"candidate_labels must leave room .* 59 tokens, got \d+ for 'a b b"):
        classify(TEXTS, ["sport", "a" + " b" * 70])


def test_the_lower_limit_of_model_and_tokenizer_counts() -> None:
    plain, fast = models()
    expected = pipe_of(plain)(TEXTS, LABELS)
    assert_same(zero_shot_classification(fast, build())(TEXTS, LABELS), expected)  # 512 tokens
    short = build(model_max_length=40)
    pipe = pipeline("zero-shot-classification", plain, tokenizer=short, device="cpu")
    assert_same(zero_shot_classification(fast, short)(TEXTS, LABELS), pipe(TEXTS, LABELS))


def test_the_pairs_need_not_fit_into_memory() -> None:
    """A batch holds at most `batch_tokens` tokens, whatever the number of texts."""
    _, fast = models()
    tokens: list[int] = []
    forward = fast.ernie_m.forward

    def counted(input_ids: PackedBatch, **options: Any) -> Any:
        tokens.append(input_ids.total_tokens)
        return forward(input_ids, **options)

    fast.ernie_m.forward = counted
    zero_shot_classification(fast, TOKENIZER, batch_tokens=150)(TEXTS, LABELS)
    assert max(tokens) <= 150
    assert len(tokens) > 3


def test_results_come_a_window_at_a_time_and_the_bar_ends(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fast = models()
    classify = zero_shot_classification(fast, TOKENIZER)
    expected = classify(TEXTS, LABELS)
    assert capsys.readouterr().err == ""
    calls: list[int] = []
    compute = ZeroShot.compute
    monkeypatch.setattr(ZeroShot, "compute", lambda self, tokens: calls.append(len(tokens)) or compute(self, tokens))
    monkeypatch.setattr(runs, "TOKENS_PER_WINDOW", 400)
    assert_same(classify(TEXTS, LABELS, progress=True), expected)
    assert sum(calls) == len(TEXTS)
    assert len(calls) > 3
    shown = capsys.readouterr().err
    assert "Tokenizing: 100%" in shown
    assert "Classifying: 100%" in shown


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "no labels": (lambda classify: classify("a", []), ValueError, "at least one label, .* got none"),
    "an empty label": (lambda classify: classify("a", ["x", " "]), ValueError, "empty"),
    "an empty label between commas": (lambda classify: classify("a", "x,,y"), ValueError, "empty"),
    "a label twice": (lambda classify: classify("a", ["x", "y", "x"]), ValueError, "'x' more than once"),
    "a label that is no str": (lambda classify: classify("a", ["x", 3]), TypeError, r"candidate_labels\[1\].* int"),
    "a text that is no str": (lambda classify: classify(["a", None], ["x"]), TypeError, r"sequences\[1\].* NoneType"),
    "a template without a place": (
        lambda classify: classify("a", ["x"], hypothesis_template="About sport."), ValueError, "hypothesis_template",
    ),
    "a template with two places": (
        lambda classify: classify("a", ["x"], hypothesis_template="{} {}"), ValueError, "hypothesis_template",
    ),
    "a template with a name": (
        lambda classify: classify("a", ["x"], hypothesis_template="{label}"), ValueError, "hypothesis_template",
    ),
    "a template that is cut": (
        lambda classify: classify("a", ["x"], hypothesis_template="About {"), ValueError, "hypothesis_template",
    ),
    "a template with a width": (
        lambda classify: classify("a", ["x"], hypothesis_template="About {:>9}."), ValueError, "a place is {} or {0}",
    ),
    "a template with an attribute": (
        lambda classify: classify("a", ["x"], hypothesis_template="{0.__doc__}"), ValueError, "a place is {} or {0}",
    ),
    "no texts": (lambda classify: classify(None, ["x"]), TypeError, "sequences must be a str, .* got NoneType"),
    "no list of labels": (lambda classify: classify("a", None), TypeError, "candidate_labels must be .* got NoneType"),
    "a lone surrogate": (lambda classify: classify(["a", "\ud800"], ["x"]), ValueError, r"sequences\[1\] holds a lone"),
    "a label with one": (lambda classify: classify("a", ["\ud800"]), ValueError, r"candidate_labels\[0\] holds a lone"),
    "a template with one": (
        lambda classify: classify("a", ["x"], hypothesis_template="{}\ud800"), ValueError, "hypothesis_template holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(zero_shot_classification(models()[1], TOKENIZER))


def test_braces_in_a_label_are_text() -> None:
    plain, fast = models()
    for labels in (["b", "{}"], ["{0}", "{"]):
        assert_same([zero_shot_classification(fast, TOKENIZER)("a", labels)], [pipe_of(plain)("a", labels)])
    assert zero_shot_classification(fast, TOKENIZER)("a", ["{}"])["labels"] == ["{}"]


def test_bad_models() -> None:
    plain, fast = models()
    with pytest.raises(TypeError, match=r"tokenizer must be an erniem_fast\.ErnieMTokenizer, got builtins.str"):
        zero_shot_classification(fast, "tokenizer")  # type: ignore[arg-type]
    for wrong in (fast.ernie_m, plain):
        with pytest.raises(TypeError, match=r"model must be an erniem_fast\.ErnieMForSequenceClassification, got "):
            zero_shot_classification(wrong, TOKENIZER)
    for batch_tokens in (0, "8192", 1.5, True):
        with pytest.raises(ValueError, match="batch_tokens must be a whole number of at least 1, got"):
            zero_shot_classification(fast, TOKENIZER, batch_tokens=batch_tokens)  # type: ignore[arg-type]
    single = make("ErnieMForSequenceClassification", num_labels=1)[1]
    with pytest.raises(ValueError, match="at least 2 labels"):
        zero_shot_classification(single, TOKENIZER)
    classify = zero_shot_classification(fast, TOKENIZER)
    with pytest.raises(ValueError, match="eval mode"):
        zero_shot_classification(fast.train(), TOKENIZER)("a", ["b"])
    torch.nn.init.constant_(fast.eval().classifier.bias, float("nan"))
    with pytest.raises(ValueError, match=r"finite scores, got NaN or infinity for sequences\[1\]"):
        classify(["", "a"], ["b"])


def test_a_model_in_training_mode_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    classify = zero_shot_classification(models()[1].train(), TOKENIZER)
    monkeypatch.setattr(zero_shot, "ids_of", None)
    with pytest.raises(ValueError, match="eval mode"):
        classify("a", ["b"])


def test_the_configuration_may_ask_for_tuples() -> None:
    classify = zero_shot_classification(models()[1], TOKENIZER)
    expected = classify(TEXTS[:2], LABELS)
    classify.model.config.return_dict = False
    assert classify(TEXTS[:2], LABELS) == expected


def test_large_logits_and_half_precision() -> None:
    _, fast = models(dtype=torch.bfloat16)
    with torch.no_grad():
        fast.classifier.weight.mul_(1e4)
    for multi_label in (False, True):
        for result in zero_shot_classification(fast, TOKENIZER)(TEXTS, LABELS, multi_label=multi_label):
            assert all(0 <= score <= 1 for score in result["scores"])


def test_it_is_a_name_of_the_package() -> None:
    assert "zero_shot_classification" in erniem_fast.__all__
