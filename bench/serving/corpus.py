"""Texts that are served: XQuAD's and Tatoeba's from a folder, or those that the checkout holds, repeated."""

import json
import random
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from bench.engine.environment import ROOT

CONTEXTS, QUESTIONS = 0.1, 0.45
"""Shares of paragraphs and of questions; the rest are single sentences."""
DOCUMENTS = ROOT / "erniem_fast" / "demo_data" / "texts.jsonl"
PAIRS = ROOT / "tests" / "embeddings" / "pairs.tsv"
SEED = 13


class Corpus(NamedTuple):
    """Distinct texts of three kinds, and where they are from."""

    contexts: list[str]
    questions: list[str]
    sentences: list[str]
    source: str


@cache
def corpus(folder: Path | None) -> Corpus:
    """Texts of a folder that holds `xquad/xquad.*.json` and `tatoeba/tatoeba.*-eng.*`; None: those of the checkout.

    Raises:
        FileNotFoundError: the folder lacks either.
    """
    if folder is None:
        documents = [json.loads(line)["text"] for line in DOCUMENTS.read_text(encoding="utf-8").splitlines()]
        pairs = [line.split("\t")[1:] for line in PAIRS.read_text(encoding="utf-8").splitlines()]
        long = [text for text in documents if len(text) >= 300]
        return Corpus(long, [pair[0] for pair in pairs], [pair[1] for pair in pairs], "the checkout's texts, repeated")
    contexts, questions = [], []
    for path in sorted(folder.glob("xquad/xquad.*.json")):
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            contexts += [paragraph["context"] for paragraph in article["paragraphs"]]
            questions += [one["question"] for paragraph in article["paragraphs"] for one in paragraph["qas"]]
    lines = (path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("tatoeba/tatoeba.*-eng.*")))
    sentences = sorted({line for found in lines for line in found if line.strip()})
    if not contexts or not sentences:
        raise FileNotFoundError(f"expected a folder with xquad/xquad.*.json and tatoeba/tatoeba.*, got {folder}")
    return Corpus(contexts, questions, sentences, "XQuAD and Tatoeba")


def draw(number: int, folder: Path | None) -> list[str]:
    """So many texts in order of arrival: the same ones every time, none twice before all of its kind have come."""
    found, rng = corpus(folder), random.Random(SEED)
    counts = [int(number * CONTEXTS), int(number * QUESTIONS)]
    counts.append(number - sum(counts))
    texts: list[str] = []
    for kind, count in zip((found.contexts, found.questions, found.sentences), counts, strict=True):
        shuffled = rng.sample(kind, len(kind))
        texts += islice((text for _ in range(1 + count // len(kind)) for text in shuffled), count)
    rng.shuffle(texts)
    return texts
