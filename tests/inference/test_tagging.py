"""Entities equal transformers' token-classification pipeline, in texts of any length."""

import warnings
from typing import Any

import pytest
import torch
from helpers.documents import TEXTS
from helpers.task_models import FAMILIES, MAX_TOKENS, SHORT, labels, make
from transformers import pipeline

from erniem_fast.inference.runner import Runner
from erniem_fast.inference.tagging import STRATEGIES, Tagging

TAGS = labels("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
QUICK = ("ErnieM", "Bert")
EACH = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES if name != "XLM"
]  # fmt: skip
LONG = [TEXTS[7], SHORT[0][:15], TEXTS[45], "", " \n", TEXTS[73][:200]]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """transformers warns of its own idea of a word once a token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(family: str, **options: Any) -> tuple[Any, Any, Any]:
    """The pipeline of the plain model; the padding-free model; a function that tags with options."""
    plain, fast, tokenizer = make(family, "ForTokenClassification", **TAGS)
    with torch.no_grad():  # every label is that of some tokens
        ids = tokenizer(TEXTS[39] * 3, truncation=True, return_tensors="pt")["input_ids"]
        mean = plain(ids).logits[0].mean(0)
        for model in (plain, fast):
            model.classifier.bias.sub_(mean)
    pipe = pipeline("token-classification", plain, tokenizer=tokenizer, device="cpu")

    def tag(texts: list[str], **options: Any) -> Any:
        task = Tagging(fast, tokenizer, Runner(fast, 200), **options)
        tokens = task.tokenize(texts)
        assert [task.size(one) for one in tokens] == [
            sum(len(task._row(one, window).ids) for window in one.windows) for one in tokens
        ]
        return task.compute(tokens)

    return pipe, fast, tag


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [{**row, "score": 0} for row in one] == [{**row, "score": 0} for row in other]
        assert [row["score"] for row in one] == pytest.approx([float(row["score"]) for row in other], abs=1e-5)
        assert all(type(row["score"]) is float for row in one)


@pytest.mark.parametrize("family", EACH)
def test_short_texts_equal_the_pipeline(family: str) -> None:
    pipe, _, tag = made(family)
    texts = [text[:15] for text in SHORT]
    for strategy in STRATEGIES:
        found = tag(texts, aggregation_strategy=strategy)
        assert_same(found, pipe(texts, aggregation_strategy=strategy))
        assert any(found)


@pytest.mark.parametrize(
    ("strategies", "stride"),
    [
        (("simple", "average"), 13),
        pytest.param(STRATEGIES[1:], 13, marks=pytest.mark.slow),
        pytest.param(STRATEGIES[1:], 0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", EACH)
def test_long_texts_equal_the_pipeline_s_windows(family: str, strategies: tuple[str, ...], stride: int) -> None:
    pipe, _, tag = made(family)
    for strategy in strategies:
        expected = [pipe(text, aggregation_strategy=strategy, stride=stride) if text else [] for text in LONG]
        found = tag(LONG, aggregation_strategy=strategy, stride=stride)
        assert_same(found, expected)
    assert sum(map(len, found)) > 3


@pytest.mark.parametrize("family", ["ErnieM", "Bert"])
def test_each_token_of_a_long_text_is_tagged_once(family: str) -> None:
    """By hand: a token's label is that of the window in whose middle it lies most."""
    pipe, _, tag = made(family)
    plain, tokenizer, text = pipe.model, pipe.tokenizer, LONG[0]
    (found,) = tag([text], aggregation_strategy="none", stride=20)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, room = whole["input_ids"], MAX_TOKENS - 2
    count = -(-(len(ids) - 20) // (room - 20))
    starts = [index * (len(ids) - room) // (count - 1) for index in range(count)]
    assert count > 2
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    logits_at = {}
    for start in starts:
        with torch.inference_mode():
            logits_at[start] = plain(torch.tensor([[cls, *ids[start : start + room], sep]])).logits[0]
    expected = []
    for place, offsets in enumerate(whole["offset_mapping"]):
        start = max(starts, key=lambda start: (-abs(2 * place + 1 - 2 * start - room), start))
        logits = logits_at[start][1 + place - start]
        label = plain.config.id2label[int(logits.argmax())]
        word = tokenizer.convert_ids_to_tokens(ids[place])
        word = text[slice(*offsets)] if ids[place] == tokenizer.unk_token_id else word
        row = {"entity": label, "score": float(logits.softmax(0).max()), "index": place + 1, "word": word}
        expected += [row | dict(zip(("start", "end"), offsets, strict=True))] if label != "O" else []
    assert_same([found], [expected])
    assert len(found) > len(ids) / 3


def test_half_precision_and_float64() -> None:
    pipe, fast, tag = made("Bert")
    expected = pipe(SHORT[:2], aggregation_strategy="simple", stride=13)
    fast.double()
    assert_same(tag(SHORT[:2], stride=13), expected)
    fast.bfloat16()
    assert all(0 < row["score"] <= 1 for row in tag(SHORT[:2])[0])


def test_bad_arguments_are_named() -> None:
    _, fast, tag = made("Bert")
    for options, message in (
        ({"aggregation_strategy": "best"}, "must be one of none, simple, first, average, max, got 'best'"),
        ({"stride": 62}, r"stride must be a whole number in \[0, 61\], got 62"),
        ({"stride": -1}, "stride must be"),
        ({"max_tokens": 10, "stride": 8}, r"stride must be a whole number in \[0, 7\], got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            tag(["a"], **options)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got NoneType"):
        tag(["a", None])
    with pytest.raises(ValueError, match=r"texts\[0\] holds a lone surrogate"):
        tag(["\udc00"])
    with torch.no_grad():
        fast.classifier.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"finite scores, got NaN or infinity for texts\[1\]"):
        tag(["", "a"])


@pytest.mark.slow
def test_a_tokenizer_without_offsets_is_refused() -> None:
    pytest.importorskip("sacremoses")
    _, fast, tokenizer = make("XLM", "ForTokenClassification", **TAGS)
    with pytest.raises(ValueError, match=r"tokenizer must give the characters .* got the slow .*XLMTokenizer"):
        Tagging(fast, tokenizer, Runner(fast))
