"""Answers to questions: equal to a slow computation by hand, window by window; bad input is named."""

import copy
import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import golden_tokenizer, pairs
from helpers.documents import document
from helpers.pairs import SIZES
from helpers.xquad import ROWS
from hypothesis import example, given, settings
from hypothesis import strategies as st

import erniem_fast
from erniem_fast import ErnieMForQuestionAnswering, question_answering
from erniem_fast.inference.question_answering import Answering, Span, best_spans
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.spans import window_starts

CLS, SEP = 0, 2
SIZE = {"max_position_embeddings": 514, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def tokenizer():
    return golden_tokenizer.build()


@pytest.fixture
def models(tokenizer):
    """The reference and the fast model, float64, with scores far enough apart to be ordered."""
    return pairs.make("ErnieMForQuestionAnswering", vocab_size=len(tokenizer), noise=0.5, **SIZE)


def by_hand(model, tokenizer, question, context, size=384, stride=128, longest=15):
    """Every span with its score, the best first; and the score of no answer."""
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = read["input_ids"], read["offset_mapping"]
    room = size - len(asked) - 4
    best, none, first = {}, 1.0, 0
    while True:
        window = [CLS, *asked, SEP, SEP, *ids[first : first + room], SEP]
        with torch.inference_mode():
            output = model(torch.tensor([window]))
        begin, behind = len(asked) + 3, len(window) - 1
        places = [0, *range(begin, behind)]
        start, end = np.exp(output.start_logits[0].tolist()), np.exp(output.end_logits[0].tolist())
        start, end = start / sum(start[places]), end / sum(end[places])
        none = min(none, start[0] * end[0])
        for i in range(begin, behind):
            for j in range(i, min(i + longest, behind)):
                one, other = offsets[first + i - begin], offsets[first + j - begin]
                if one[0] < one[1] and other[0] < other[1]:
                    span = (one[0], other[1])
                    best[span] = max(start[i] * end[j], best.get(span, 0.0))
        if first + room >= len(ids):
            break
        first += room - stride
    spans = [(score, *span) for span, score in best.items()]
    return sorted(spans, key=lambda span: (-span[0], span[1], span[2])), none


def assert_answers(found, expected, context):
    assert len(found) == len(expected)
    for answer, (score, start, end) in zip(found, expected, strict=True):
        assert answer["score"] == pytest.approx(score, rel=1e-6)
        assert (answer["start"], answer["end"], answer["answer"]) == (start, end, context[start:end])


def check(models, tokenizer, rows, size, stride, longest):
    plain, fast = models
    answers = question_answering(fast, tokenizer, batch_tokens=700)(
        rows, top_k=4, max_seq_len=size, doc_stride=stride, max_answer_len=longest
    )
    either = question_answering(fast, tokenizer)(
        rows, top_k=4, max_seq_len=size, doc_stride=stride, max_answer_len=longest, handle_impossible_answer=True
    )
    for row, found, both in zip(rows, answers, either, strict=True):
        spans, none = by_hand(plain, tokenizer, row["question"], row["context"], size, stride, longest)
        assert_answers(found, spans[:4], row["context"])
        spans = sorted([*spans, (none, 0, 0)], key=lambda span: (-span[0], span[1], span[2]))
        assert_answers(both, spans[:4], row["context"])


def test_answers_equal_a_computation_by_hand(models, tokenizer):
    check(models, tokenizer, ROWS[::9], 64, 16, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "longest"), [(48, 0, 3), (56, 8, 40), (384, 128, 15)])
def test_answers_equal_a_computation_by_hand_in_every_language(models, tokenizer, size, stride, longest):
    check(models, tokenizer, ROWS[::2], size, stride, longest)


def test_a_document_of_4000_tokens(models, tokenizer):
    plain, fast = models
    row = ROWS[-1]
    context = document(tokenizer)
    found = question_answering(fast, tokenizer)(row["question"], context, top_k=3)
    assert_answers(found, by_hand(plain, tokenizer, row["question"], context)[0][:3], context)


class Planted(ErnieMForQuestionAnswering):
    """A model that knows the answer's tokens, and finds them wherever they come."""

    answer: list[int]

    def forward(self, batch, **options):
        ids, size = batch.input_ids.tolist(), len(self.answer)
        scores = torch.zeros(2, len(ids))
        scores[:, batch.cu_seqlens[:-1].long()] = 5.0  # [CLS]
        for place in range(len(ids)):
            if ids[place : place + size] == self.answer:
                scores[0, place] = scores[1, place + size - 1] = 20.0
        return SimpleNamespace(start_logits=scores[:1], end_logits=scores[1:])


def test_the_gold_answer_is_found_at_its_characters(tokenizer):
    """In every language, right-to-left and without spaces, where tokens begin and end at the answer."""
    config = erniem_fast.ErnieMConfig(**(pairs.SIZES | SIZE | {"vocab_size": 2}))
    model = Planted(config).eval()
    seen = dict.fromkeys((row["lang"] for row in ROWS), 0)
    for row in ROWS:
        context, gold, begin = row["context"], row["answers"]["text"][0], row["answers"]["answer_start"][0]
        read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
        inside = [i for i, (s, e) in enumerate(read["offset_mapping"]) if begin <= s < e <= begin + len(gold)]
        if (
            not 0 < len(inside) <= 30
            or context[: read["offset_mapping"][inside[0]][0]].strip() != context[:begin].strip()
        ):
            continue  # a token begins before the answer
        if read["offset_mapping"][inside[-1]][1] != begin + len(gold):
            continue
        model.answer = read["input_ids"][inside[0] : inside[-1] + 1]
        answer = question_answering(model, tokenizer)(row, max_seq_len=72, doc_stride=30, max_answer_len=30)
        assert answer["answer"] == gold
        assert context[answer["start"] : answer["end"]] == gold
        seen[row["lang"]] += 1
    assert min(seen.values()) >= 3, seen


def test_without_an_answer_in_any_window_no_answer_wins(tokenizer):
    model = Planted(erniem_fast.ErnieMConfig(**(pairs.SIZES | SIZE | {"vocab_size": 2}))).eval()
    model.answer = [-1]
    row = ROWS[0]
    answer = question_answering(model, tokenizer)(row, handle_impossible_answer=True, max_seq_len=64, doc_stride=16)
    assert (answer["start"], answer["end"], answer["answer"]) == (0, 0, "")
    # One window with the answer is enough, though all others say that there is none.
    model.answer = tokenizer(row["context"], add_special_tokens=False)["input_ids"][-4:-2]
    answer = question_answering(model, tokenizer)(row, handle_impossible_answer=True, max_seq_len=64, doc_stride=16)
    assert answer["answer"]


@given(st.data())
def test_best_spans_orders_ties_and_merges_equal_characters(data):
    n = data.draw(st.integers(1, 12))
    logits = st.lists(st.integers(-1, 1), min_size=n + 1, max_size=n + 1)
    start, end = (np.array(data.draw(logits), dtype=float) for _ in range(2))
    steps = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=n, max_size=n))
    offsets, at = [], 0
    for gap, size in steps:
        # Of two tokens of one character, both have its span.
        offsets.append(offsets[-1] if offsets and gap + size == 0 else (at + gap, at + gap + size))
        at = offsets[-1][1]
    top_k, longest = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    found, none = best_spans(start, end, np.array(offsets), top_k, longest)

    p, q = np.exp(start - start.max()), np.exp(end - end.max())
    p, q = p / p.sum(), q / q.sum()
    best: dict = {}
    for i in range(n):
        for j in range(i, min(n, i + longest)):
            span = (offsets[i][0], offsets[j][1])
            if offsets[i][0] < offsets[i][1] and offsets[j][0] < offsets[j][1]:
                best[span] = max(best.get(span, 0.0), p[i + 1] * q[j + 1])
    expected = sorted((Span(score, *span) for span, score in best.items()), key=lambda s: (-s.score, s.start, s.end))
    assert found == expected[:top_k]
    assert none == p[0] * q[0]


@pytest.fixture(scope="module")
def answer_anything(tokenizer):
    _, fast = pairs.make("ErnieMForQuestionAnswering", vocab_size=len(tokenizer), **SIZE)
    return question_answering(fast, tokenizer)


@settings(max_examples=60)
@given(st.text(max_size=30), st.text(max_size=60), st.integers(1, 5))
@example("a", "[SEP] [MASK]", 3)
@example("[CLS]", "ﷺ\x00\u200b ﷺ", 3)
@example("a", "İ\ud800", 1)
def test_any_text_is_answered_within_it_or_named(answer_anything, question, context, top_k):
    refusal, found = "", []
    try:
        found = answer_anything([question], context, top_k=top_k)[0]
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert re.match(r"(question|context)\[0\] (must hold text|holds a lone surrogate)", refusal, re.DOTALL)
        return
    answers = [found] if top_k == 1 else found
    spans = [(answer["start"], answer["end"]) for answer in answers]
    assert 0 < len(set(spans)) == len(spans) <= top_k
    for answer, (start, end) in zip(answers, spans, strict=True):
        assert 0 <= start < end <= len(context)
        assert answer["answer"] == context[start:end]
        assert 0 <= answer["score"] <= 1


@given(st.integers(1, 300), st.integers(1, 60), st.integers(0, 70))
def test_windows_cover_all_tokens_once_and_overlap_by_the_stride(length, room, stride):
    if length > room <= stride:
        return  # refused
    starts = list(window_starts(length, room, stride))
    assert starts[0] == 0
    assert starts[-1] + room >= length
    for before, after in pairwise(starts):
        assert before + room - after == stride
        assert before + room < length


def test_windows_are_those_of_the_tokenizer(models, tokenizer):
    task = Answering(models[1], tokenizer, Runner(models[1]), max_seq_len=56, doc_stride=9)
    for row in ROWS[::8]:
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=56, stride=9,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        (read,) = task.tokenize([row])
        assert [window.ids.tolist() for window in task.rows(read)] == encoded["input_ids"]
        assert task.size(read) == sum(map(len, encoded["input_ids"]))
        for number, start in enumerate(read.starts):
            inside = [i for i, side in enumerate(encoded.sequence_ids(number)) if side == 1]
            offsets = read.context.offsets[start : start + read.room]
            assert offsets.tolist() == [list(encoded["offset_mapping"][number][i]) for i in inside]


def test_every_form_of_questions(models, tokenizer):
    answer = question_answering(models[1], tokenizer)
    rows = ROWS[:3]
    questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
    expected = [answer(row["question"], row["context"]) for row in rows]
    assert all(set(one) == {"score", "start", "end", "answer"} for one in expected)
    for found in (
        answer(rows),
        answer(iter(rows)),
        answer(question=questions, context=contexts),
        answer(tuple(questions), (context for context in contexts)),
        [answer(row) for row in rows],
        [answer([row])[0] for row in rows],
        [best[0] for best in answer(rows, top_k=2)],
    ):
        assert_answers(found, [(one["score"], one["start"], one["end"]) for one in expected], contexts[0])
    json.dumps(expected)  # plain Python numbers
    assert answer(questions, contexts[0]) == answer(questions, [contexts[0]] * 3)
    assert answer(questions[0], contexts) == answer([questions[0]] * 3, contexts)
    assert answer([]) == answer([], []) == answer("Who?", []) == []
    assert len(answer(rows[0], top_k=3)) == 3
    assert len(answer("Who?", "I.", top_k=10**6)) < 10


def test_the_callers_lists_stay_as_they_are(models, tokenizer):
    questions = ["Who?"]
    question_answering(models[1], tokenizer)(questions, ["I.", "You."][:1])
    question_answering(models[1], tokenizer)(questions, "I.")
    assert questions == ["Who?"]


def test_more_windows_than_64_show_a_progress_bar(models, tokenizer, capsys):
    answer = question_answering(models[1], tokenizer)
    for many, progress, shown in ((65, None, True), (64, None, False), (65, False, False), (1, True, True)):
        answer(["Who?"] * many, "I.", progress=progress)
        assert ("Answering" in capsys.readouterr().err) == shown
    answer([f"Who is {number}?" for number in range(65)], "I.")
    assert "Tokenizing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "options", "parts"),
    [
        (("", "I."), {}, ["question must hold text", "''"]),
        (("Who?", " \n\u3000"), {}, ["context must hold text"]),
        ((["Who?", "Who?"], ["I.", ""]), {}, ["context[1] must hold text"]),
        ((["Who?", "Why?", "What?"], ["I.", "", ""]), {}, ["context[1] must hold text"]),
        (({"question": "\u200b", "context": "I."},), {}, ["question must hold text"]),
        ((["Who?"], ["I.", "You."]), {}, ["question and context", "1 and 2"]),
        (("Who?",), {}, ["context must be given"]),
        (({"question": "Who?"},), {}, ["keys question and context", "['question']"]),
        (([{"question": "Who?", "context": "I."}, "Who?"],), {}, ["question[1]", "got str"]),
        (("Who? " * 400, "I."), {}, ["question must leave room", "max_seq_len=384"]),
        ((["Who?", "Who? " * 400], "I."), {}, ["question[1] must leave room"]),
        (("Who?", "I. " * 50), {"max_seq_len": 40, "doc_stride": 39}, ["doc_stride", "40", "got 39"]),
        (("Who?", "I."), {"max_seq_len": 513}, ["max_seq_len", "[6, 512]", "513"]),
        (("Who?", "I."), {"max_seq_len": 5}, ["max_seq_len", "5"]),
        (("Who?", "I."), {"doc_stride": -1}, ["doc_stride", "-1"]),
        (("Who?", "I."), {"top_k": 0}, ["top_k", "0"]),
        (("Who?", "I."), {"top_k": True}, ["top_k", "True"]),
        (("Who?", "I."), {"max_answer_len": 1.5}, ["max_answer_len", "1.5"]),
    ],
)  # fmt: skip
def test_bad_values_are_named(models, tokenizer, arguments, options, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        question_answering(models[1], tokenizer)(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, "I."), "question must be a str or a list, got int"),
        (("Who?", {"a": "I."}), "context must be a str or a list, got dict"),
        ((["Who?", None], "I."), r"question\[1\] must be a str, got NoneType"),
        (({"question": "Who?", "context": ["I."]},), "context must be a str, got list"),
    ],
)
def test_bad_types_are_named(models, tokenizer, arguments, message):
    with pytest.raises(TypeError, match=message):
        question_answering(models[1], tokenizer)(*arguments)


def test_a_short_context_needs_no_stride(models, tokenizer):
    """Only windows that follow one another overlap."""
    answer = question_answering(models[1], tokenizer)
    assert answer("Who?", "I am.", doc_stride=400) == answer("Who?", "I am.")
    room = 40 - 4 - len(tokenizer("Who?", add_special_tokens=False)["input_ids"])
    answer("Who?", "I am. " * 50, max_seq_len=40, doc_stride=room - 1)
    with pytest.raises(ValueError, match=f"doc_stride must be less than the {room} tokens .* got {room}"):
        answer("Who?", "I am. " * 50, max_seq_len=40, doc_stride=room)


def test_a_question_that_leaves_few_tokens(models, tokenizer):
    """By default windows overlap by half of the room at most."""
    plain, fast = models
    question = "Who? " * 20
    room = 64 - 4 - len(tokenizer(question, add_special_tokens=False)["input_ids"])
    assert 0 < room < 32
    found = question_answering(fast, tokenizer)(question, ROWS[0]["context"], top_k=2, max_seq_len=64)
    expected, _ = by_hand(plain, tokenizer, question, ROWS[0]["context"], 64, room // 2)
    assert_answers(found, expected[:2], ROWS[0]["context"])


@pytest.mark.slow
def test_adapters_take_part(models, tokenizer):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
    adapted = peft.get_peft_model(models[1], adapters).eval()
    row = ROWS[0]
    with_adapters = question_answering(adapted, tokenizer)(row)
    with adapted.disable_adapter():
        without = question_answering(adapted, tokenizer)(row)
    merged = question_answering(adapted.merge_and_unload(), tokenizer)(row)
    assert with_adapters["score"] == pytest.approx(merged["score"], rel=1e-6)
    assert with_adapters["score"] != pytest.approx(without["score"], rel=1e-3)


@pytest.mark.slow
def test_tokens_before_the_text_are_refused(models, tokenizer):
    peft = pytest.importorskip("peft")
    prompts = peft.PromptTuningConfig(
        task_type="QUESTION_ANS", num_virtual_tokens=3, num_layers=1, token_dim=SIZES["hidden_size"],
        num_attention_heads=1,
    )  # fmt: skip
    with pytest.raises(TypeError, match="model must take packed batches, got a peft model"):
        question_answering(peft.get_peft_model(models[1], prompts), tokenizer)


def test_the_configuration_may_ask_for_tuples(models, tokenizer):
    answer = question_answering(models[1], tokenizer)
    expected = answer("Who?", "I am.")
    answer.model.config.return_dict = False
    assert answer("Who?", "I am.") == expected


def test_a_tokenizer_may_take_less_than_the_model(models, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 40
    answer = question_answering(models[1], tokenizer)
    assert answer("Who?", "I am. " * 50) == answer("Who?", "I am. " * 50, max_seq_len=40)
    with pytest.raises(ValueError, match=r"max_seq_len must be a whole number in \[6, 40\], got 41"):
        answer("Who?", "I am.", max_seq_len=41)


def test_bad_models_are_named(models, tokenizer):
    plain, fast = models
    with pytest.raises(TypeError, match=r"ErnieMForQuestionAnswering, got erniem_fast.reference"):
        question_answering(plain, tokenizer)
    with pytest.raises(TypeError, match=r"ErnieMForQuestionAnswering, got erniem_fast.modeling.ErnieMModel"):
        question_answering(fast.ernie_m, tokenizer)
    with pytest.raises(TypeError, match=r"tokenizer must be .*ErnieMTokenizer, got builtins.str"):
        question_answering(fast, "susnato/ernie-m-base_pytorch")
    with pytest.raises(ValueError, match="batch_tokens"):
        question_answering(fast, tokenizer, batch_tokens=0)
    answer = question_answering(fast, tokenizer)
    fast.train()
    with pytest.raises(ValueError, match="model must be in eval mode"):
        answer("Who?", "I.")
    fast.eval()
    with torch.no_grad():
        fast.qa_outputs.bias[0] = float("nan")
    with pytest.raises(ValueError, match="finite scores, got NaN or infinity for question"):
        answer("Who?", "I.")
