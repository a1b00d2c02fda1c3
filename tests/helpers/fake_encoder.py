"""An encoder without a model: what a text gets follows from the text alone, and tests tell it when to fail or wait."""

import hashlib
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from erniem_fast.inference.settings import SentenceSettings
from erniem_fast.inference.tokens import Row
from helpers.processes import PATIENCE

DIM = 8
MAX_TOKENS = 16
VOCABULARY = 1000
LABELS = ("negative", "neutral", "positive")


def vector_of(ids: Any, normalize: bool = True, dim: int = DIM) -> np.ndarray:
    """What the encoder gives for token ids."""
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int32).tobytes()).digest()
    vector = np.frombuffer(digest, dtype=np.uint8)[:dim].astype(np.float32) - 127.3
    return vector / np.float32(np.linalg.norm(vector)) if normalize else vector


def ids_of(text: str) -> list[int]:
    """Token ids: one for each word, between two special ones."""
    return [0, *(2 + sum(word.encode()) % (VOCABULARY - 2) for word in text.split()), 1]


class FakeTask:
    """A task of `FakeEncoder`. The word "boom" makes a call fail; a text with "unknown" can't be tokenized."""

    def __init__(self, encoder: "FakeEncoder", name: str, **options: Any) -> None:
        self.encoder, self.name, self.options = encoder, name, options
        self.prompt = encoder.settings.prompts.get(options.get("prompt_name"), "")
        self.dim, self.truncated = DIM, 0
        if "truncation" in options and name not in ("encode", "token_embeddings"):
            raise TypeError("unexpected option truncation")

    def tokenize(self, items: Any, first: int = 0) -> list[Row]:
        rows = []
        for place, item in enumerate(items, first):
            text = item if isinstance(item, str) else " ".join(item)
            if "unknown" in text:
                raise ValueError(f"texts[{place}] can't be tokenized")
            ids = ids_of(self.prompt + text)
            self.truncated += len(ids) > MAX_TOKENS
            room, side = MAX_TOKENS - 2, self.options.get("truncation", "right")
            inner = ids[1:-1][:room] if side == "right" else ids[1:-1][-room:]
            rows.append(Row(np.array([0, *inner, 1], np.int32)))
        return rows

    def size(self, tokens: Row) -> int:
        return len(tokens.ids)

    def compute(self, tokens: Any) -> Any:
        self.encoder.calls.append([row.ids.tolist() for row in tokens])
        self.encoder.entered.set()
        assert self.encoder.gate.wait(PATIENCE)
        if any(ids_of("boom")[1] in row.ids for row in tokens):
            raise RuntimeError("the device is on fire")
        normalize, dim = self.options.get("normalize", True), self.options.get("truncate_dim", DIM)
        if self.name == "encode":
            return np.stack([vector_of(row.ids, normalize, dim) for row in tokens])
        if self.name == "token_embeddings":
            wide = self.encoder.width // DIM
            return [np.stack([np.tile(vector_of([token], False), wide) for token in row.ids]) for row in tokens]
        scores = [vector_of(row.ids, dim=3) for row in tokens]
        if self.name == "rerank":
            return [float(score[0]) for score in scores]
        named = [sorted(zip(score.tolist(), LABELS, strict=True), reverse=True) for score in scores]
        return [[{"label": label, "score": score} for score, label in row] for row in named]


class FakeEncoder:
    """Stands in for `Encoder`.

    Args:
        labels: of its head; (): it has none.

    Attributes:
        calls: token ids of each call of the model.
        gate: cleared, calls of the model wait until it is set.
        entered: set by each call.
        width: numbers in the vector of a token.
    """

    def __init__(self, labels: tuple[str, ...] = LABELS) -> None:
        self.labels, self.width = labels, DIM
        self.calls: list[list[list[int]]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.max_tokens, self.dtype, self.device, self.architectures = MAX_TOKENS, "float32", "cpu", ["FakeModel"]
        self.settings = SentenceSettings(prompts={"query": "query: "})
        self.model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(labels))))
        self.tokenizer = FakeTokenizer()

    def task(self, name: str, **options: Any) -> FakeTask:
        has = {"encode": True, "token_embeddings": True, "classify": self.labels, "rerank": len(self.labels) == 1}
        if not has.get(name):
            raise ValueError(f"{name} needs another head; the architectures of this one: FakeModel")
        if options.get("prompt_name") not in (None, *self.settings.prompts):
            raise ValueError(f"prompt_name must be one of 'query', got {options['prompt_name']!r}")
        return FakeTask(self, name, **options)


class FakeTokenizer:
    """Gives what `/tokenize` and `/decode` ask for."""

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, text: str, add_special_tokens: bool, **options: Any) -> dict[str, list]:
        places, start = [], 0
        for word in text.split():
            start = text.index(word, start)
            places.append((start, start + len(word)))
            start += len(word)
        ids, mask = ids_of(text)[1:-1], [0] * len(places)
        if add_special_tokens:
            ids, mask, places = [0, *ids, 1], [1, *mask, 1], [(0, 0), *places, (0, 0)]
        return {"input_ids": ids, "special_tokens_mask": mask, "offset_mapping": places}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"<{token}>" for token in ids]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, (token for token in ids if token > 1 or not skip_special_tokens)))
