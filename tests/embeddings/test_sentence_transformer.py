"""SentenceTransformer on packed rows: its vectors and gradients are those of the padded computation."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.embedders import assert_same_gradients, embedder, gradients, padded
from helpers.paths import ROOT
from peft import LoraConfig
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    SparseEncoder,
)
from sentence_transformers.base import modules
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import MPNetConfig, MPNetModel

from erniem_fast.inference.embedding import Embedding
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.settings import SentenceSettings
from erniem_fast.sentence_transformers import Transformer

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
LONG = "Ein sehr langer Text, der niemals endet. " * 100
LOSSES = {
    "plain": MultipleNegativesRankingLoss,
    "cached": partial(CachedMultipleNegativesRankingLoss, mini_batch_size=5),
    "cached by tokens": partial(CachedMultipleNegativesRankingLoss, mini_batch_num_tokens=60),
}


def assert_close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def test_nothing_is_padded_from_the_tokenizer_to_the_pooling(both: Any, texts: list[str]) -> None:
    packed, _ = both
    lengths = [len(ids) for ids in packed.tokenizer(texts[:8], truncation=True)["input_ids"]]
    features = packed.preprocess(texts[:8])
    assert "attention_mask" not in features
    assert features["input_ids"].shape == (1, sum(lengths))
    assert features["cu_seq_lens_q"].diff().tolist() == lengths
    seen = []
    packed[0].register_forward_hook(lambda module, inputs, output: seen.append(output["token_embeddings"].shape))
    with torch.no_grad():
        packed(features)
    assert seen == [(1, sum(lengths), 32)]


@pytest.mark.parametrize("pooling", ["mean", pytest.param("cls", marks=pytest.mark.slow)])
def test_vectors_are_those_of_the_engine(pooling: str, folder: str, texts: list[str]) -> None:
    model = embedder(Transformer(folder), pooling)
    task = Embedding(model.tokenizer, Runner(model[0].model), SentenceSettings(), 512, pooling=pooling)
    assert_close(model.encode(texts, batch_size=16), task.compute(task.tokenize(texts)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*MODES, ("mean", "max", "cls")], ids=str)
def test_every_pooling(mode: Any, folder: str, texts: list[str]) -> None:
    """Also without the prompt's tokens, and of texts that are empty or too long."""
    some = [*texts[:12], "", " ", "a", LONG]
    for include_prompt in (True, False):
        packed, plain = (
            embedder(module, mode, include_prompt=include_prompt) for module in (Transformer(folder), padded(folder))
        )
        assert_close(packed.encode(some, prompt="query: "), plain.encode(some, prompt="query: "))


OPTIONS: dict[str, dict[str, Any]] = {
    "one batch": {"batch_size": 64}, "single texts": {"batch_size": 1}, "prompt": {"prompt": "Frage: "},
    "prompt's name": {"prompt_name": "query"}, "normalised": {"normalize_embeddings": True},
    "truncated": {"truncate_dim": 7, "normalize_embeddings": True}, "tensor": {"convert_to_tensor": True},
    "list": {"convert_to_numpy": False}, "binary": {"precision": "ubinary"}, "int8": {"precision": "int8"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_encode(options: dict[str, Any], both: Any, texts: list[str]) -> None:
    packed, plain = both
    some = ["", *texts[:20], LONG]
    for model in both:
        model.prompts |= {"query": "query: ", "document": "passage: "}
    one, other = packed.encode(some, **options), plain.encode(some, **options)
    assert type(one) is type(other)
    if options.get("precision") == "ubinary":
        # Bits of values that are almost 0 may differ.
        assert (np.unpackbits(one, axis=1) == np.unpackbits(other, axis=1)).mean() > 0.99
    else:
        # A step of int8 where a value lies on its edge.
        tolerance = 1 / 127 if "precision" in options else 1e-6
        assert_close(np.stack([*one]).astype(float), np.stack([*other]).astype(float), tolerance)


@pytest.mark.slow
def test_queries_documents_and_a_single_text(both: Any) -> None:
    packed, plain = both
    for model in both:
        model.prompts |= {"query": "query: ", "document": "passage: "}
    for method in ("encode_query", "encode_document", "encode"):
        one, other = (getattr(model, method)("Wo ist der Bahnhof?") for model in both)
        assert one.shape == other.shape == (32,)
        assert_close(one, other)
    assert packed.encode([]).shape == plain.encode([]).shape


@pytest.mark.slow
def test_long_texts_are_cut(folder: str, both: Any) -> None:
    packed, _ = both
    plain = SentenceTransformer(folder, device="cpu")
    assert plain.max_seq_length == packed.max_seq_length == 512
    assert_close(packed.encode(LONG), plain.encode(LONG))
    packed.max_seq_length = plain.max_seq_length = 20
    assert packed.preprocess([LONG, "a"])["cu_seq_lens_q"].tolist() == [0, 20, 23]
    assert_close(packed.encode(LONG), plain.encode(LONG))


@pytest.mark.slow
def test_lowercase(folder: str) -> None:
    lower = embedder(Transformer(folder, do_lower_case=True))
    plain = embedder(Transformer(folder))
    assert_close(lower.encode("ÉCOLE Straße"), plain.encode("école straße"))
    assert np.abs(lower.encode("ÉCOLE") - plain.encode("ÉCOLE")).max() > 1e-3


@pytest.mark.slow
def test_padded_on_request(folder: str, both: Any, texts: list[str]) -> None:
    """For what reads an attention mask, such as the vectors of single tokens."""
    packed = both[0]
    with pytest.raises(KeyError, match=r"no attention_mask; .* set model\[0\].unpad_inputs = False"):
        packed.encode(texts[:6], output_value="token_embeddings")
    packed[0].unpad_inputs = False
    one, other = (model.encode(texts[:6], output_value="token_embeddings") for model in both)
    for found, wanted in zip(one, other, strict=True):
        assert_close(found.numpy(), wanted.numpy(), 1e-5)
    packed[0].unpad_inputs = None
    assert "cu_seq_lens_q" in packed.preprocess(["a"])


@pytest.mark.parametrize("name", ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LOSSES)[1:])])
def test_gradients_are_those_of_the_padded_computation(name: str, both: Any, pairs: dict[str, list[str]]) -> None:
    columns = [column[8:40] for column in pairs.values()]
    (value, found), (wanted, expected) = (
        gradients(model, LOSSES[name](model), [model.preprocess(column) for column in columns]) for model in both
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    assert_same_gradients(found, expected)


@pytest.mark.slow
def test_cached_gradients_belong_to_the_same_dropout(save: Any, pairs: dict[str, list[str]]) -> None:
    """Mini-batches are embedded twice, without gradients and with them, under the same masks."""
    model = embedder(Transformer(save())).train()
    seen: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output["sentence_embedding"].detach()))
    inputs = [model.preprocess(column[:12]) for column in pairs.values()]
    LOSSES["cached"](model)(inputs, None).backward()
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 6
    for one, other in zip(first, second, strict=True):
        assert_close(one.numpy(), other.numpy())
    again = model(dict(inputs[0]))["sentence_embedding"].detach()
    assert float((again[:5] - first[0]).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_epochs_on_sentence_pairs(loss: Any, save: Any, pairs: dict[str, list[str]], tmp_path: Path) -> None:
    model = embedder(Transformer(save()), "mean", Normalize())
    data = Dataset.from_dict(pairs)
    arguments = SentenceTransformerTrainingArguments(
        tmp_path, num_train_epochs=5, per_device_train_batch_size=16, per_device_eval_batch_size=16, learning_rate=3e-3,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        prompts={"anchor": "query: ", "positive": "passage: "},
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=data, eval_dataset=data, loss=loss(model))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_a_saved_model_loads(folder: str, texts: list[str], tmp_path: Path) -> None:
    model = embedder(Transformer(folder), "mean", Normalize(), prompts={"query": "query: "})
    model.max_seq_length = 100
    model.save(str(tmp_path))
    listed = json.loads((tmp_path / "modules.json").read_text())
    assert listed[0]["type"] == "erniem_fast.sentence_transformers.Transformer"
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(tmp_path), device="cpu")
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert type(again[0]) is Transformer
    assert again.max_seq_length == 100
    assert_close(again.encode_query(texts[:9]), model.encode_query(texts[:9]), 0)


@pytest.mark.slow
def test_an_adapter(folder: str, texts: list[str], tmp_path: Path) -> None:
    """Of peft, with its default target modules; saved, and loaded from the folder that holds nothing but it."""
    model = embedder(Transformer(folder))
    before = model.encode(texts[:9])
    model.add_adapter(LoraConfig(init_lora_weights=False))
    wanted = model.encode(texts[:9])
    assert np.abs(wanted - before).max() > 1e-3
    model.save(str(tmp_path))
    assert not (tmp_path / "model.safetensors").exists()
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert "cu_seq_lens_q" in again.preprocess(["a"])
    assert_close(again.encode(texts[:9]), wanted, 0)


@pytest.mark.slow
def test_a_folder_of_sentence_transformers_loads_as_before(folder: str, texts: list[str], tmp_path: Path) -> None:
    """And gets our module by one assignment, which keeps the rest."""
    SentenceTransformer(folder, device="cpu", prompts={"query": "query: "}).save(str(tmp_path))
    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert type(model[0]) is modules.Transformer
    wanted = model.encode_query(texts)
    assert_close(wanted, embedder(padded(folder), prompts={"query": "query: "}).encode_query(texts))
    model[0] = Transformer.load(str(tmp_path))
    assert_close(model.encode_query(texts), wanted)
    assert "cu_seq_lens_q" in model.preprocess(["a"])


@pytest.mark.slow
def test_another_model_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    MPNetModel(MPNetConfig(vocab_size=9, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(ValueError, match=r"must hold an encoder of BertModel, .*; got MPNetModel"):
        Transformer(str(tmp_path))


FRESH = """
import sys
import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer
assert "erniem_fast" not in sys.modules
folder, cross, texts = sys.argv[1], sys.argv[2], sys.argv[4:]
model = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
scores = CrossEncoder(cross, device="cpu", trust_remote_code=True).predict([texts[:2], texts[1:3]])
np.savez(sys.argv[3], vectors=model.encode(texts), scores=scores, packed="cu_seq_lens_q" in model.preprocess(texts))
"""


@pytest.mark.slow
def test_a_fresh_process_loads_saved_models(both: Any, both_classifiers: Any, texts: list[str], tmp_path: Path) -> None:
    """One that never imported this package; it is imported by the class that `modules.json` names."""
    model, cross, some = both[0], both_classifiers[0], texts[:5]
    folders = str(tmp_path / "model"), str(tmp_path / "cross"), str(tmp_path / "out.npz")
    model.save(folders[0])
    cross.save(folders[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", FRESH, *folders, *some], cwd=tmp_path, env=environment, check=True)
    found = np.load(folders[2])
    assert found["packed"]
    assert_close(found["vectors"], model.encode(some), 0)
    assert_close(found["scores"], cross.predict([some[:2], some[1:3]]), 0)


@pytest.mark.slow
def test_two_processes(both: Any, texts: list[str]) -> None:
    packed, plain = both
    pool = packed.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = packed.encode(texts, pool=pool, chunk_size=20)
    finally:
        packed.stop_multi_process_pool(pool)
    assert_close(found, plain.encode(texts))


@pytest.mark.slow
def test_sparse_encoder(save: Any, texts: list[str]) -> None:
    folder = save("ErnieMForMaskedLM")
    one, other = (
        SparseEncoder(modules=[module, SpladePooling("max")], device="cpu").encode(texts[:12]).to_dense()
        for module in (Transformer(folder, transformer_task="fill-mask"), padded(folder, "ErnieMForMaskedLM"))
    )
    assert float(other.max()) > 0.1
    assert_close(one.numpy(), other.numpy(), 1e-5)
