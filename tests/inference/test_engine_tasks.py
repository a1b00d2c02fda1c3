"""The tasks of `Encoder`: what the callables and the pipelines give, from a folder; heads that a folder lacks."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders
from helpers.extraction import make_pair
from helpers.golden_tokenizer import build
from helpers.sentence_folders import change_json
from helpers.task_models import MIXED, labels
from helpers.xquad import ROWS
from peft import LoraConfig, get_peft_model
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from erniem_fast import Encoder, information_extraction, question_answering, zero_shot_classification
from erniem_fast.inference.stream import ITEMS_PER_CALL

SEQUENCES, TOKENS, ANSWERS = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
NLI = labels("entailment", "neutral", "contradiction")
LABELS = ["sport", "travel"]
SOME = [*MIXED[2:], MIXED[0]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine, once for each kind of folder."""
    engines: dict[str, Encoder] = {}

    def engine(head: str, family: str = "Bert", **changes: Any) -> Encoder:
        key = f"{family} {head} {sorted(changes)}"
        if key not in engines:
            folder = str(family_folders.save_family(tmp_path_factory.mktemp("head"), family, head, 64, **changes))
            engines[key] = Encoder.from_pretrained(folder, dtype="float32", device="cpu", batch_tokens=200)
            engines[key].tokenizer.model_max_length = 64
        return engines[key]

    return engine


def test_classify(make: Any) -> None:
    encoder = make(SEQUENCES, **NLI)
    pipe = pipeline("text-classification", encoder.model, tokenizer=encoder.tokenizer, device="cpu")
    expected = pipe(MIXED, truncation=True)
    found = encoder.classify(MIXED)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert encoder.classify(MIXED[0]) == pytest.approx(found[0])
    assert len(encoder.classify([("a", "b"), "c"], top_k=None)[0]) == 3
    assert list(encoder.stream(iter(MIXED), "classify")) == [pytest.approx(row) for row in found]


@pytest.mark.parametrize(
    ("query", "documents", "top_k", "error", "message"),
    [
        ("a", "bc", None, TypeError, "documents must be any number of texts, .* got str"),
        (3, ["b"], None, TypeError, "query must be a str, got int"),
        ("a", ["b"], 0, ValueError, "top_k must be a whole number of at least 1, got 0"),
        ("a", ["b", "c"], -1, ValueError, "top_k must be .* got -1"),
    ],
)
def test_bad_arguments_of_rerank(
    make: Any, query: Any, documents: Any, top_k: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(SEQUENCES, "XLMRoberta", num_labels=1).rerank(query, documents, top_k=top_k)


@pytest.mark.parametrize("kind", [None, "SEQ_CLS"])
def test_adapters_of_any_kind_are_called(make: Any, kind: str | None) -> None:
    encoder = make(SEQUENCES, **NLI)
    config = LoraConfig(target_modules=["query", "dense"], init_lora_weights=False, task_type=kind)
    adapted = get_peft_model(copy.deepcopy(encoder.model), config).eval()
    pipe = pipeline("text-classification", adapted, tokenizer=encoder.tokenizer, device="cpu")
    expected = pipe(MIXED, truncation=True)
    found = Encoder(adapted, encoder.tokenizer).classify(MIXED)
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    plain = [row["score"] for row in encoder.classify(MIXED)]
    assert plain != pytest.approx([row["score"] for row in found], abs=1e-3)


def test_rerank(make: Any) -> None:
    encoder = make(SEQUENCES, "XLMRoberta", num_labels=1)
    found = encoder.rerank("a", MIXED)
    assert sorted(row["index"] for row in found) == list(range(len(MIXED)))
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    scores = list(encoder.stream([("a", text) for text in MIXED], "rerank"))
    assert [row["score"] for row in found] == pytest.approx([scores[row["index"]] for row in found])
    assert encoder.rerank("a", MIXED, top_k=2) == found[:2]
    assert encoder.rerank("a", []) == []
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 1, got -1"):
        encoder.rerank("a", MIXED, top_k=-1)


def test_settings_of_a_cross_encoder_s_folder(tmp_path: Path) -> None:
    folder = family_folders.save_family(tmp_path, "Bert", SEQUENCES, 64, num_labels=1)
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    change_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    change_json(folder / "sentence_bert_config.json", max_seq_length=20)
    encoder = Encoder.from_pretrained(str(folder), dtype="float32", device="cpu")
    with torch.inference_mode():
        logits = [
            float(plain(**tokenizer(MIXED[0], text, truncation=True, max_length=20, return_tensors="pt")).logits)
            for text in MIXED
            if text
        ]
    found = encoder.rerank(MIXED[0], [text for text in MIXED if text])
    assert [row["score"] for row in found] == pytest.approx(sorted(np.tanh(logits), reverse=True), abs=1e-5)
    labels = encoder.classify([(MIXED[0], text) for text in MIXED if text])
    assert [label["score"] for label in labels] == pytest.approx(np.tanh(logits).tolist(), abs=1e-5)
    raw = encoder.classify([(MIXED[0], text) for text in MIXED if text], activation="none")
    assert [label["score"] for label in raw] == pytest.approx(logits, abs=1e-4)


def test_prompts_of_a_cross_encoder(tmp_path: Path) -> None:
    """Before the first text of a pair, the default one where none is named, as sentence-transformers."""
    base = family_folders.save_family(tmp_path / "base", "Bert", SEQUENCES, 64, num_labels=1)
    plain = CrossEncoder(str(base), device="cpu", prompts={"a": "Find: ", "b": "Ask for "}, default_prompt_name="a")
    folder = str(tmp_path / "folder")
    plain.save_pretrained(folder)
    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu")
    pairs = [(MIXED[0], text) for text in MIXED if text]
    found = {}
    for name in (None, "b"):
        expected = plain.predict(pairs, prompt_name=name).tolist()
        found[name] = [row["score"] for row in encoder.classify(pairs, prompt_name=name)]
        assert found[name] == pytest.approx(expected, abs=1e-5)
        ranks = encoder.rerank(MIXED[0], [text for _, text in pairs], prompt_name=name)
        assert [row["score"] for row in ranks] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
    assert found[None] != pytest.approx(found["b"], abs=1e-4)
    with pytest.raises(ValueError, match="prompt_name must be one of the folder's prompts"):
        encoder.classify(pairs, prompt_name="c")


def test_zero_shot(make: Any) -> None:
    encoder = make(SEQUENCES, **NLI)
    classify = zero_shot_classification(encoder.model, encoder.tokenizer)
    for multi_label in (False, True):
        found = encoder.zero_shot(MIXED, LABELS, multi_label=multi_label)
        for one, other in zip(found, classify(MIXED, LABELS, multi_label=multi_label), strict=True):
            assert one["labels"] == other["labels"]
            assert one["scores"] == pytest.approx(other["scores"])
    assert encoder.zero_shot("a", "x, y")["sequence"] == "a"


def test_tag(make: Any) -> None:
    encoder = make(TOKENS, **labels("A", "B", "C"))
    pipe = pipeline("token-classification", encoder.model, tokenizer=encoder.tokenizer, device="cpu")
    texts = [text for text in MIXED if text]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [pipe(text, aggregation_strategy="max", stride=9) for text in texts]
        found = encoder.tag(texts, aggregation_strategy="max", stride=9)
    for one, other in zip(found, expected, strict=True):
        assert [{**row, "score": 0} for row in one] == [{**row, "score": 0} for row in other]
    assert encoder.tag("") == []


def test_answer(make: Any) -> None:
    encoder = make(ANSWERS)
    answer = question_answering(encoder.model, encoder.tokenizer)
    rows = [{"question": row["question"][:9], "context": row["context"][:120]} for row in ROWS[::20]]
    expected = answer(rows, max_seq_len=40, top_k=2)
    found = encoder.answer(rows, max_seq_len=40, top_k=2)
    for one, other in zip(found, expected, strict=True):
        assert [span["answer"] for span in one] == [span["answer"] for span in other]
    question, context = rows[0]["question"], rows[0]["context"]
    assert encoder.answer(question, context)["answer"] == answer(question, context)["answer"]
    assert [row["answer"] for row in encoder.answer([question], context)] == [encoder.answer(rows[0])["answer"]]
    assert len(list(encoder.stream(rows, "answer"))) == len(rows)
    assert encoder.answer([], []) == []


def test_extract(tmp_path: Path) -> None:
    tokenizer = build()
    model = make_pair(len(tokenizer))[1].float()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder.from_pretrained(str(tmp_path), dtype="float32", device="cpu", batch_tokens=200)
    schema = {"Person": ["Birthplace"], "time": None}
    expected = information_extraction(model.float(), tokenizer)(SOME, schema, language="en", threshold=0.4)
    found = encoder.extract(SOME, schema, language="en", threshold=0.4)
    assert [[(name, len(spans)) for name, spans in one.items()] for one in found] == [
        [(name, len(spans)) for name, spans in one.items()] for one in expected
    ]
    assert any(found)
    assert encoder.extract("", schema) == {}
    task: Any = encoder.task("extract", schema="Person")
    (tokens,) = task.tokenize([MIXED[1]])
    rows: list[int] = []
    encoder.runner.on_tokens = rows.append
    task.compute([tokens])
    assert sum(rows) == task.size(tokens)


def test_a_bad_item_is_named_by_its_place_in_the_stream(make: Any) -> None:
    encoder = make(SEQUENCES, **NLI)
    items = ["a"] * (ITEMS_PER_CALL + 3) + [None]
    with pytest.raises(TypeError, match=rf"texts\[{ITEMS_PER_CALL + 3}\] must be a str or a pair of two"):
        list(encoder.stream(items, "classify"))
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
        encoder.zero_shot(["a", 1], LABELS)
    with pytest.raises(ValueError, match=r"question\[1\] must be a dict with the keys question and context"):
        list(make(ANSWERS).stream([ROWS[0], "Who?"], "answer"))


def test_heads_that_a_folder_lacks_are_named(make: Any) -> None:
    encoder = make(SEQUENCES, **NLI)
    calls = {
        "TokenClassification": lambda: encoder.tag("a"), "QuestionAnswering": lambda: encoder.answer("a", "b"),
        "InformationExtraction": lambda: encoder.extract("a", "b"),
    }  # fmt: skip
    for head, call in calls.items():
        with pytest.raises(ValueError, match=rf"head for {head}; .* BertForSequenceClassification"):
            call()
    with pytest.raises(ValueError, match="one label to rank documents by, got 3"):
        encoder.rerank("a", ["b"])
