"""Tiny random checkpoints: in a Hugging Face cache under the names of public ones, and in folders of a reader's own."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer
from helpers.family_folders import save_family
from helpers.paths import GOLDEN_TOKENIZER

REVISION = "0" * 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LABELS = ("entailment", "neutral", "contradiction")
TOPICS = ("politics", "sport")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
CHECKPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "susnato/ernie-m-base_pytorch": ("ErnieMModel", {}),
    "MoritzLaurer/ernie-m-base-mnli-xnli": (
        "ErnieMForSequenceClassification",
        {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}},
    ),
    "your-org/ernie-m-base-topics": (
        "ErnieMForSequenceClassification",
        {
            "num_hidden_layers": 12,
            "id2label": dict(enumerate(TOPICS)),
            "label2id": {topic: index for index, topic in enumerate(TOPICS)},
        },
    ),
    "your-org/ernie-m-base-squad": ("ErnieMForQuestionAnswering", {}),
    "your-org/ernie-m-base-ner": (
        "ErnieMForTokenClassification",
        {"id2label": dict(enumerate(TAGS)), "label2id": {tag: index for index, tag in enumerate(TAGS)}},
    ),
}
"""Class and further configuration of each checkpoint that the documentation names: public ones, and a reader's own."""
FAMILIES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "intfloat/multilingual-e5-base": ("XLMRoberta", "Model", {}),
    "BAAI/bge-reranker-v2-m3": ("XLMRoberta", "ForSequenceClassification", {"num_labels": 1}),
    "google-bert/bert-base-multilingual-cased": ("Bert", "ForMaskedLM", {}),
}
"""Family, class and further configuration of each checkpoint of another family that the documentation names."""


FOLDERS = {"uie-m-base": "ErnieMForInformationExtraction"}
"""Class of each folder that the documentation takes for granted in the current one."""


def fill_cache(cache: Path) -> None:
    """Write the checkpoints of `CHECKPOINTS` and `FAMILIES` into the folder `cache`, as huggingface_hub lays it out.

    Args:
        cache: the folder that the environment variable HF_HUB_CACHE names.
    """
    for name, (class_name, changes) in CHECKPOINTS.items():
        _save(_snapshot(cache, name), class_name, changes)
    for name, (family, head, changes) in FAMILIES.items():
        save_family(_snapshot(cache, name), family, head, 512, **changes)


def _snapshot(cache: Path, name: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
    return repository / "snapshots" / REVISION


def fill_folders(parent: Path) -> None:
    """Write every folder of `FOLDERS` into `parent`."""
    for name, class_name in FOLDERS.items():
        _save(parent / name, class_name, {})


def _save(folder: Path, class_name: str, changes: Mapping[str, Any]) -> None:
    vocabulary, pieces = GOLDEN_TOKENIZER / "vocab.txt", GOLDEN_TOKENIZER / "sentencepiece.bpe.model"
    size = len(ErnieMTokenizer(pieces, vocabulary))
    model = getattr(erniem_fast, class_name)(ErnieMConfig(vocab_size=size, **(SIZES | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    for file in (vocabulary, pieces):
        shutil.copy(file, folder)
