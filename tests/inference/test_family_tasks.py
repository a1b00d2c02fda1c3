"""Zero-shot labels and answers by heads of other families: as transformers' pipeline, and as computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders
from helpers.task_models import FAMILIES, MAX_TOKENS, MIXED, labels, make
from helpers.xquad import ROWS
from transformers import pipeline

from erniem_fast import padding_free, question_answering, zero_shot_classification
from erniem_fast.inference.question_answering import Answering
from erniem_fast.inference.runner import Runner

NLI = labels("contradiction", "neutral", "entailment")
OTHERS = FAMILIES[1:]
EACH = [pytest.param(name, marks=[] if name == "Bert" else pytest.mark.slow) for name in OTHERS]


@pytest.mark.parametrize("family", EACH)
def test_zero_shot_equals_the_pipeline(family: str) -> None:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    plain, fast, tokenizer = make(family, "ForSequenceClassification", **NLI)
    texts = [text for text in MIXED if text]
    pipe = pipeline("zero-shot-classification", plain, tokenizer=tokenizer, device="cpu")
    for multi_label in (False, True):
        options = {"hypothesis_template": "Über {}.", "multi_label": multi_label}
        found = zero_shot_classification(fast, tokenizer, batch_tokens=200)(texts, ["Sport", "天気"], **options)
        for one, other in zip(found, pipe(texts, ["Sport", "天気"], **options), strict=True):
            assert one["sequence"] == other["sequence"]
            scores = dict(zip(other["labels"], other["scores"], strict=True))
            np.testing.assert_allclose(one["scores"], [scores[label] for label in one["labels"]], atol=1e-5)
            assert one["scores"] == sorted(one["scores"], reverse=True)
    assert len({round(one["scores"][0], 3) for one in found}) > 2


def by_hand(plain: Any, tokenizer: Any, row: Any, stride: int, longest: int) -> tuple[list[Any], float]:
    """Spans of a context with their scores, the best first, and the score of no answer, from the tokenizer's windows.

    The tokens of the context are those behind as many special tokens as a pair has before its second text.
    """
    encoded = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=MAX_TOKENS, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best: dict[tuple[int, int], float] = {}
    no_answer = 1.0
    for number, ids in enumerate(encoded["input_ids"]):
        further = {}
        if "token_type_ids" in encoded:
            further["token_type_ids"] = torch.tensor([encoded["token_type_ids"][number]])
        with torch.inference_mode():
            output = plain(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **further)
        inside = [place for place, side in enumerate(encoded.sequence_ids(number)) if side == 1]
        both = [output.start_logits[0].double().numpy(), output.end_logits[0].double().numpy()]
        start, end = (np.exp(logits) / np.exp(logits[[0, *inside]]).sum() for logits in both)
        no_answer = min(no_answer, start[0] * end[0])
        for first in inside:
            for last in range(first, min(first + longest, inside[-1] + 1)):
                (begin, some), (more, stop) = (encoded["offset_mapping"][number][i] for i in (first, last))
                if begin < some and more < stop:
                    best[begin, stop] = max(best.get((begin, stop), 0.0), start[first] * end[last])
    ordered = sorted(best.items(), key=lambda span: (-span[1], span[0]))
    return [(score, *span) for span, score in ordered], no_answer


SHORT_QUESTIONS = [{"question": row["question"][:12], "context": row["context"][:150]} for row in ROWS[::9]]


def check_answers(plain: Any, fast: Any, tokenizer: Any) -> None:
    answer = question_answering(fast, tokenizer, batch_tokens=300)
    options = {"doc_stride": 5, "max_answer_len": 6, "max_seq_len": MAX_TOKENS, "top_k": 3}
    found = answer(SHORT_QUESTIONS, **options)
    either = answer(SHORT_QUESTIONS, handle_impossible_answer=True, **(options | {"top_k": 10**6}))
    for row, some, every in zip(SHORT_QUESTIONS, found, either, strict=True):
        spans, no_answer = by_hand(plain, tokenizer, row, 5, 6)
        assert [(one["start"], one["end"]) for one in some] == [span[1:] for span in spans[:3]]
        assert [one["score"] for one in some] == pytest.approx([span[0] for span in spans[:3]], rel=1e-6)
        assert all(one["answer"] == row["context"][one["start"] : one["end"]] for one in some)
        (none,) = [one["score"] for one in every if one["end"] == 0]
        assert none == pytest.approx(no_answer, rel=1e-6)


@pytest.mark.parametrize("family", [param for param in EACH if param.values[0] != "XLM"])
def test_answers_equal_a_computation_by_hand(family: str) -> None:
    check_answers(*make(family, "ForQuestionAnswering", torch.float64))


@pytest.mark.slow
def test_xlm_answers_with_a_fast_tokenizer() -> None:
    pytest.importorskip("sacremoses")
    tokenizer = family_folders.tokenizer("XLMRoberta")
    plain, fast, _ = make("XLM", "ForQuestionAnsweringSimple", torch.float64)
    assert len(tokenizer) <= plain.config.n_words
    check_answers(plain, fast, tokenizer)


@pytest.mark.slow
def test_heads_of_xlm_that_find_no_answers_are_refused() -> None:
    pytest.importorskip("sacremoses")
    _, simple, slow = make("XLM", "ForQuestionAnsweringSimple")
    with pytest.raises(ValueError, match=r"tokenizer must give the characters .* got the slow .*XLMTokenizer"):
        question_answering(simple, slow)
    _, beams, _ = make("XLM", "ForQuestionAnswering")
    with pytest.raises(ValueError, match=r"got a XLMForQuestionAnswering: its beam .* XLMForQuestionAnsweringSimple"):
        question_answering(beams, slow)


def test_other_heads_are_refused() -> None:
    _, tags, tokenizer = make("Bert", "ForTokenClassification")
    with pytest.raises(TypeError, match=r"ErnieMForQuestionAnswering, got .*BertForTokenClassification; heads of"):
        Answering(tags, tokenizer, Runner(tags))


def test_a_subclass_of_a_head_is_one() -> None:
    plain, _, tokenizer = make("Bert", "ForQuestionAnswering")

    class Mine(type(plain)):  # type: ignore[misc]
        """Of a user."""

    mine = padding_free(Mine(plain.config)).eval()
    found = question_answering(mine, tokenizer)("Who?", "I am.")
    assert found["answer"] in "I am."
