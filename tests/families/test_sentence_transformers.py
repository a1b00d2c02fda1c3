"""SentenceTransformer and CrossEncoder of padding-free models against themselves before the call."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.families import NO_DROPOUT, make_plain
from helpers.paths import ROOT
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base import modules
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertTokenizer

from erniem_fast import encoder, padding_free, restore
from erniem_fast.packed import PackedEncoder

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS[:20], *(f"##{letter}" for letter in LETTERS), "."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saves a small BERT with a tokenizer of single letters, and gives its folder."""

    def save(head: str, **changes: Any) -> str:
        made = tmp_path_factory.mktemp(head)
        (made / "vocab.txt").write_text("\n".join(VOCABULARY))
        sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64} | changes
        make_plain("bert", head, torch.float32, **sizes).save_pretrained(made)
        BertTokenizer(str(made / "vocab.txt"), model_max_length=64).save_pretrained(made)
        return str(made)

    return save


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Words of 1 to 40 letters in all."""
    words = (ROOT / "README.md").read_text(encoding="utf-8").lower().split()
    return [" ".join(words[start : start + 1 + start % 7])[:60] for start in range(40)] + ["", "a"]


@pytest.fixture(scope="module")
def embedder(folder: Any) -> SentenceTransformer:
    module = modules.Transformer(folder("Model"))
    return SentenceTransformer(modules=[module, Pooling(32, "mean")], device="cpu")


@pytest.fixture(scope="module")
def reranker(folder: Any) -> CrossEncoder:
    return CrossEncoder(folder("ForSequenceClassification", num_labels=1), device="cpu")


def assert_close(found: Any, expected: Any) -> None:
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def rows_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    run = encoder.run_layer
    monkeypatch.setattr(encoder, "run_layer", lambda parts, x, *a: seen.append(len(x)) or run(parts, x, *a))
    return seen


def test_vectors(embedder: SentenceTransformer, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fast = padding_free(copy.deepcopy(embedder))
    assert isinstance(fast[0].model, PackedEncoder)
    seen = rows_of(monkeypatch)
    assert_close(fast.encode(texts, batch_size=16), embedder.encode(texts, batch_size=16))
    lengths = [len(ids) for ids in fast.tokenizer(texts)["input_ids"]]
    assert sum(seen) == 2 * sum(lengths)
    assert_close(restore(fast).encode(texts), embedder.encode(texts))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cls", "max", "weightedmean", "lasttoken"])
def test_poolings(mode: str, embedder: SentenceTransformer, texts: list[str]) -> None:
    plain = SentenceTransformer(modules=[copy.deepcopy(embedder[0]), Pooling(32, mode)], device="cpu")
    fast = padding_free(copy.deepcopy(plain))
    assert_close(fast.encode(texts, normalize_embeddings=True), plain.encode(texts, normalize_embeddings=True))


def test_scores(reranker: CrossEncoder, texts: list[str]) -> None:
    fast = padding_free(copy.deepcopy(reranker))
    pairs = list(zip(texts, reversed(texts), strict=True))
    assert_close(fast.predict(pairs, batch_size=16), reranker.predict(pairs, batch_size=16))
    ranks, wanted = (model.rank("a text", texts[:9]) for model in (fast, reranker))
    assert [rank["corpus_id"] for rank in ranks] == [rank["corpus_id"] for rank in wanted]


@pytest.mark.slow
def test_processes(embedder: SentenceTransformer, reranker: CrossEncoder, texts: list[str]) -> None:
    """A pool's workers get the model pickled."""
    fast = padding_free(copy.deepcopy(embedder))
    pool = fast.start_multi_process_pool(["cpu"])
    try:
        assert_close(fast.encode(texts, pool=pool, chunk_size=21), embedder.encode(texts))
    finally:
        fast.stop_multi_process_pool(pool)
    other = padding_free(copy.deepcopy(reranker))
    pairs = list(zip(texts, reversed(texts), strict=True))
    pool = other.start_multi_process_pool(["cpu"])
    try:
        assert_close(other.predict(pairs, pool=pool, chunk_size=21), reranker.predict(pairs))
    finally:
        other.stop_multi_process_pool(pool)


@pytest.mark.slow
def test_saved_and_loaded(embedder: SentenceTransformer, texts: list[str], tmp_path: Path) -> None:
    """As sentence-transformers' own module: nothing of us is named."""
    fast = padding_free(copy.deepcopy(embedder))
    fast.save(str(tmp_path))
    assert not any("erniem_fast" in path.read_text() for path in tmp_path.rglob("*.json"))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert not isinstance(again[0].model, PackedEncoder)
    assert_close(again.encode(texts), fast.encode(texts))


def test_gradients(folder: Any, texts: list[str]) -> None:
    module = modules.Transformer(folder("Model", **NO_DROPOUT))
    plain = SentenceTransformer(modules=[module, Pooling(32, "mean")], device="cpu").double().train()
    fast = padding_free(copy.deepcopy(plain))
    values, grads = [], []
    for model in (plain, fast):
        columns = [model.preprocess(texts[:8]), model.preprocess(texts[8:16])]
        loss = MultipleNegativesRankingLoss(model)(columns, None)
        loss.backward()
        values.append(loss.item())
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert values[1] == pytest.approx(values[0], rel=1e-10)
    assert grads[0].keys() == grads[1].keys()
    scale = max(float(grad.abs().max()) for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name] / scale, grad / scale, rtol=0, atol=1e-10)
