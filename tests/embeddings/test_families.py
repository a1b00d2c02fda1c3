"""sentence-transformers on packed rows with other families: what its own module gives around plain transformers."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.embedders import assert_same_gradients, embedder, gradients
from helpers.family_folders import FAMILIES, MAX_TOKENS, save_family
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base import modules
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sparse_encoder.modules import SpladePooling

from erniem_fast.packed import PackedEncoder
from erniem_fast.sentence_transformers import Transformer

QUICK = ("Bert", "XLMRoberta")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def marked(family: str) -> Any:
    marks = [] if family in QUICK else [pytest.mark.slow]
    if family == "XLM":
        marks.append(pytest.mark.skipif(find_spec("sacremoses") is None, reason="XLM's tokenizer needs sacremoses"))
    return pytest.param(family, marks=marks)


def plain_module(folder: str, **options: Any) -> modules.Transformer:
    """sentence-transformers' own module, which would take two tokens too many of RoBERTa's kind."""
    return modules.Transformer(folder, max_seq_length=MAX_TOKENS, **options)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("family", [marked(family) for family in FAMILIES])
def test_vectors(family: str, texts: list[str], tmp_path: Path) -> None:
    folder = str(save_family(tmp_path, family))
    packed, plain = (embedder(module) for module in (Transformer(folder), plain_module(folder)))
    assert packed.max_seq_length == MAX_TOKENS
    assert isinstance(packed[0].model, PackedEncoder)
    assert not isinstance(plain[0].model, PackedEncoder)
    features = packed.preprocess(["", *texts[:3]])
    assert "attention_mask" not in features
    first = packed[0].model.limits.first_position
    assert features["position_ids"][0, features["cu_seq_lens_q"][:-1]].tolist() == [first] * 4
    some = ["", *texts[:20]]
    assert_close(packed.encode(some), plain.encode(some))
    assert_close(packed.encode(some, prompt="query: "), plain.encode(some, prompt="query: "))


@pytest.mark.parametrize("family", ["Bert", pytest.param("XLMRoberta", marks=pytest.mark.slow)])
def test_scores_of_pairs(family: str, pairs: dict[str, list[str]], tmp_path: Path) -> None:
    """BERT's pairs have token types."""
    folder = str(save_family(tmp_path, family, "ForSequenceClassification", num_labels=1, **NO_DROPOUT))
    both = [
        CrossEncoder(modules=[cls(folder, transformer_task="sequence-classification")], device="cpu")
        for cls in (Transformer, plain_module)
    ]
    some = [*zip(pairs["anchor"][:9], pairs["positive"][:9], strict=True), ("a", "")]
    features = both[0].preprocess(some)
    assert "attention_mask" not in features
    assert ("token_type_ids" in features) == (family == "Bert")
    scores = both[1].predict(some)
    assert np.ptp(scores) > 1e-3
    assert_close(both[0].predict(some), scores)

    columns, labels = [list(column) for column in zip(*some, strict=True)], torch.rand(len(some)).double()
    (value, found), (wanted, expected) = (
        gradients(model, BinaryCrossEntropyLoss(model), columns, labels) for model in both
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    assert_same_gradients(found, expected)


def test_a_saved_model_loads(texts: list[str], tmp_path: Path) -> None:
    model = embedder(Transformer(str(save_family(tmp_path / "base", "XLMRoberta"))), prompts={"query": "query: "})
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert type(again[0]) is Transformer
    assert_close(again.encode_query(texts[:9]), model.encode_query(texts[:9]), 0)
    plain = plain_module(str(tmp_path / "saved"))
    assert type(plain.model).__module__.startswith("transformers.")
    assert_close(embedder(plain).encode(texts[:9]), model.encode(texts[:9]))


@pytest.mark.slow
def test_gradients(pairs: dict[str, list[str]], tmp_path: Path) -> None:
    folder = str(save_family(tmp_path, "XLMRoberta", **NO_DROPOUT))
    both = [embedder(module) for module in (Transformer(folder), plain_module(folder))]
    columns = [column[8:24] for column in pairs.values()]
    (value, found), (wanted, expected) = (
        gradients(model, MultipleNegativesRankingLoss(model), [model.preprocess(column) for column in columns])
        for model in both
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    assert_same_gradients(found, expected)


@pytest.mark.slow
def test_sparse_encoder(texts: list[str], tmp_path: Path) -> None:
    folder = str(save_family(tmp_path, "Bert", "ForMaskedLM"))
    one, other = (
        SparseEncoder(modules=[module, SpladePooling("max")], device="cpu").encode(texts[:12]).to_dense()
        for module in (cls(folder, transformer_task="fill-mask") for cls in (Transformer, plain_module))
    )
    assert float(other.max()) > 0.1
    assert_close(one.numpy(), other.numpy())
