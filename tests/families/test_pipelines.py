"""Transformers' pipelines of padding-free models against themselves before the call."""

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers.families import make_plain
from transformers import BertTokenizer, pipeline

from erniem_fast import padding_free

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TEXTS = ["a word", "the longest of all of them", "b", "two more words [MASK]"]
TASKS = {
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "fill-mask": "ForMaskedLM",
    "feature-extraction": "Model",
    "zero-shot-classification": "ForSequenceClassification",
}


def numbers(found: Any) -> list[float]:
    """All numbers of a result, in order."""
    if isinstance(found, dict):
        return [number for key in sorted(found) for number in numbers(found[key])]
    if isinstance(found, list | tuple):
        return [number for item in found for number in numbers(item)]
    return [float(found)] if isinstance(found, float | int) else []


@pytest.mark.parametrize("task", [
    pytest.param(task, marks=() if task == "text-classification" else pytest.mark.slow) for task in TASKS
])  # fmt: skip
def test_pipelines(task: str, tmp_path: Path) -> None:
    """In batches, so that texts are padded."""
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=48)
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 48}
    names = ["contradiction", "entailment"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: row for row, name in enumerate(names)}}
    plain = make_plain("bert", TASKS[task], **sizes, **labels)
    results = []
    for model in (plain, padding_free(copy.deepcopy(plain))):
        run = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        texts = TEXTS if task != "fill-mask" else [f"{text} [MASK]" for text in TEXTS[:3]]
        options = {"candidate_labels": ["one", "other thing"]} if "shot" in task else {}
        found = run(texts, batch_size=len(texts), **options)
        if task == "feature-extraction":  # the pipeline gives padding, too
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
            found = [item[0][:length] for item, length in zip(found, lengths, strict=True)]
        results.append(numbers(found))
    assert results[0]
    assert results[1] == pytest.approx(results[0], rel=1e-9, abs=1e-12)
