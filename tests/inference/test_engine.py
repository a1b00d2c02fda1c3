"""Encoder: vectors of texts, whatever their number, order and form."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders
from helpers.golden_tokenizer import build
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from erniem_fast import Encoder, ErnieMConfig, ErnieMForSequenceClassification, ErnieMModel, PackedBatch, reference
from erniem_fast.cli.verify import sample
from erniem_fast.inference.loading import CheckpointError

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2, "max_position_embeddings": 42,
}  # fmt: skip
MAX_TOKENS = 40


def save(folder: Path, cls: Any = ErnieMModel, **changes: Any) -> str:
    tokenizer = build()
    cls(ErnieMConfig(vocab_size=len(tokenizer), **SIZES, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("engine") / "plain")


@pytest.fixture(scope="module")
def encoder(folder: str) -> Encoder:
    return Encoder.from_pretrained(folder, dtype="float32", batch_tokens=256)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Sentences and whole documents, longer ones than the model takes among them, in no order of length."""
    documents = [text for _, text in sample()]
    parts = [part for text in documents for part in text.replace("。", ". ").split(". ")]
    return [*parts[::7], *documents[::9], "a", *parts[1::11]]


def states_alone(folder: str, texts: list[str]) -> list[torch.Tensor]:
    """(length, 32) float32 of each text by itself, by the reference."""
    model, tokenizer = reference.ErnieMModel.from_pretrained(folder).eval(), build()
    with torch.inference_mode():
        return [
            model(tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"])[0][0]
            for text in texts
        ]


def test_vectors_are_the_means_of_each_text_alone(encoder: Encoder, folder: str, texts: list[str]) -> None:
    expected = torch.stack([states.mean(0) for states in states_alone(folder, texts)]).numpy()
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoder.encode(texts[3]), expected[3], atol=1e-5, rtol=0)
    assert encoder.encode([]).shape == (0, 32)


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_batches_and_windows_change_nothing(
    encoder: Encoder, texts: list[str], batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.encode(texts)
    monkeypatch.setattr(encoder.runner, "batch_tokens", batch_tokens)
    monkeypatch.setattr("erniem_fast.inference.stream.BATCHES_PER_WINDOW", 3)
    np.testing.assert_allclose(np.stack(list(encoder.stream(iter(texts)))), expected, atol=1e-6, rtol=0)


def test_a_stream_reads_as_it_goes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniem_fast.inference.stream.BATCHES_PER_WINDOW", 2)
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "Guten Tag, wie geht es Ihnen?"

    found = encoder.stream(endless())
    for _ in range(500):
        assert next(found).shape == (32,)
    found.close()
    assert read < 500 + 4 * 256


def test_out_of_memory_loses_nothing(encoder: Encoder, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, encode = encoder.encode(texts), encoder.runner.encode

    def short(batch: PackedBatch) -> Any:
        if batch.total_tokens > 90:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(batch)

    monkeypatch.setattr(encoder.runner, "batch_tokens", 256)
    monkeypatch.setattr(encoder.runner, "encode", short)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-6, rtol=0)
    assert 40 <= encoder.runner.batch_tokens <= 90


def test_token_embeddings_are_the_states_of_each_text(encoder: Encoder, folder: str, texts: list[str]) -> None:
    found = list(encoder.stream(texts[:9], "token_embeddings"))
    for states, expected in zip(found, states_alone(folder, texts[:9]), strict=True):
        np.testing.assert_allclose(states, expected.numpy(), atol=1e-5, rtol=0)


def test_options_of_vectors(encoder: Encoder, folder: str, texts: list[str]) -> None:
    states = states_alone(folder, texts[:9])
    first = torch.stack([one[0] for one in states])
    np.testing.assert_allclose(encoder.encode(texts[:9], pooling="cls"), first.numpy(), atol=1e-5, rtol=0)
    both = encoder.encode(texts[:9], pooling=["cls", "mean"], normalize=True, truncate_dim=40)
    joined = torch.cat([first, torch.stack([one.mean(0) for one in states])], 1)[:, :40]
    expected = torch.nn.functional.normalize(joined, dim=1)
    np.testing.assert_allclose(both, expected.numpy(), atol=1e-5, rtol=0)
    prompted = encoder.encode(texts[:9], prompt="query: ")
    np.testing.assert_allclose(prompted, encoder.encode([f"query: {text}" for text in texts[:9]]), atol=1e-6, rtol=0)


def test_white_space_has_no_tokens(encoder: Encoder) -> None:
    vectors = encoder.encode(["Guten Tag", "", " \u3000\n", "Guten Tag"])
    assert vectors[0].any()
    assert not vectors[1:3].any()
    assert np.array_equal(vectors[0], vectors[3])
    length = len(build()("Guten Tag")["input_ids"])
    assert [len(states) for states in encoder.stream(["", "Guten Tag"], "token_embeddings")] == [0, length]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_as_the_tokenizer_cuts(encoder: Encoder, side: str) -> None:
    text = " ".join(str(number) for number in range(100))
    task: Any = encoder.task("encode", truncation=side)
    expected = build(truncation_side=side)(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    (row,) = task.tokenize([text])
    assert row.ids.tolist() == expected
    assert (task.truncated, task.size(row)) == (1, MAX_TOKENS)


def test_long_texts_are_refused_where_they_are_not_to_be_cut(encoder: Encoder) -> None:
    short, long = "Guten Tag", "Guten Tag " * 50
    with pytest.raises(ValueError, match=r"texts\[300\] must have at most 40 tokens, got \d+"):
        encoder.encode([short] * 300 + [long], truncation=None)


@pytest.mark.parametrize(
    "family", ["Bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("XLMRoberta", "Electra", "XLM"))]
)
def test_other_families(family: str, tmp_path: Path, texts: list[str]) -> None:
    if family == "XLM":
        pytest.importorskip("sacremoses")
    path = str(family_folders.save_family(tmp_path / family, family))
    encoder = Encoder.from_pretrained(path, dtype="float32", batch_tokens=200)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    expected = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=encoder.max_tokens, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            expected.append(model(**inputs).last_hidden_state[0].mean(0).numpy())
    np.testing.assert_allclose(encoder.encode(texts), np.stack(expected), atol=1e-5, rtol=0)


def test_a_classifier_gives_vectors_too(tmp_path: Path, texts: list[str]) -> None:
    path = save(tmp_path / "classifier", ErnieMForSequenceClassification, num_labels=3)
    encoder = Encoder.from_pretrained(path, dtype="float32")
    assert encoder.architectures == ["ErnieMForSequenceClassification"]
    states = states_alone(path, texts[:4])
    np.testing.assert_allclose(
        encoder.encode(texts[:4]), torch.stack([one.mean(0) for one in states]).numpy(), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["classify", "rerank", "zero_shot", "tag", "answer", "extract"])
def test_a_head_that_is_not_there_is_named(encoder: Encoder, name: str) -> None:
    arguments = {"zero_shot": [["a"], ["b"]], "rerank": ["a", ["b"]], "answer": ["a", "b"], "extract": [["a"], ["b"]]}
    with pytest.raises(ValueError, match=rf"{name} needs a model with a head for .*: ErnieMModel"):
        getattr(encoder, name)(*arguments.get(name, [["a"]]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda encoder: encoder.encode(["a", 3]), TypeError, r"texts\[1\] must be a str, got int"),
        (lambda encoder: encoder.encode(["a", "b\ud800"]), ValueError, r"texts\[1\] holds a lone surrogate"),
        (lambda encoder: encoder.encode(3), TypeError, "items must be any number of them, such as a list, got int"),
        (lambda encoder: encoder.encode({"a": 1}), TypeError, "items must be any number of them, .* got dict"),
        (lambda encoder: encoder.encode(["a"], pooling="sum"), ValueError, "pooling must be one of .*, got 'sum'"),
        (lambda encoder: encoder.encode(["a"], pooling=[]), ValueError, "pooling must be one of .*, got 'none'"),
        (lambda encoder: encoder.encode(["a"], truncate_dim=0), ValueError, "truncate_dim must be a whole number"),
        (lambda encoder: encoder.encode(["a"], truncate_dim=10_000), ValueError, r"truncate_dim must be .* got 10000"),
        (lambda encoder: encoder.encode(["a"], truncation="up"), ValueError, "truncation must be one of"),
        (lambda encoder: encoder.encode(["a"], prompt_name="query"), ValueError, "prompt_name must be .* got 'query'"),
        (lambda encoder: encoder.encode(["a"], prompt="a", prompt_name="b"), ValueError, "prompt_name must be None"),
        (lambda encoder: encoder.task("sing"), ValueError, "task must be one of encode, .*, got 'sing'"),
        (lambda encoder: encoder.encode(["a"], pool="cls"), TypeError, "^encode has no option 'pool'$"),
        (lambda encoder: list(encoder.stream("abc")), TypeError, "items must be any number of them, .* got str"),
    ],
)
def test_bad_arguments(encoder: Encoder, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(encoder)
    assert encoder.encode("a").any()


def test_a_name_that_is_none() -> None:
    for name in (None, 3, b"folder"):
        with pytest.raises(TypeError, match="name must be a folder, or the id of a checkpoint, got"):
            Encoder.from_pretrained(name)  # type: ignore[arg-type]


def test_a_folder_s_path(folder: str) -> None:
    assert Encoder.from_pretrained(Path(folder)).encode("a").any()


def test_loading_says_nothing_of_weights_left_over(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        AutoModel.from_pretrained(folder, add_pooling_layer=False)
        assert "pooler" in caplog.text
        caplog.clear()
        assert Encoder.from_pretrained(folder, device="cpu").encode("a").any()
        assert "pooler" not in caplog.text
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(verbosity)


def test_bad_checkpoints(folder: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model '.*nowhere': no such folder; expected"):
        Encoder.from_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="dtype must be one of auto, float32, bfloat16, float16, int8, got 'half'"):
        Encoder.from_pretrained(folder, dtype="half")
    for device in ("tpu", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"device must be .*, got '{device}'"):
            Encoder.from_pretrained(folder, device=device)


def test_a_model_in_a_folder_of_a_name_on_the_hub(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, revision = tmp_path / "models--someone--old", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    shutil.copytree(folder, snapshot / "0_Transformer")
    modules = [
        {"idx": place, "name": str(place), "path": f"{place}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(("Transformer", "Pooling"))
    ]
    (snapshot / "modules.json").write_text(json.dumps(modules))
    (snapshot / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    (snapshot / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    vector = Encoder.from_pretrained("someone/old", dtype="float32").encode("Guten Tag")
    np.testing.assert_allclose(vector, states_alone(folder, ["Guten Tag"])[0][0].numpy(), atol=1e-5, rtol=0)


def test_weights_that_are_not_finite_are_an_error(folder: str) -> None:
    encoder = Encoder.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        encoder.encoder.encoder.layers[1].norm2.weight[3] = float("inf")
    with pytest.raises(ValueError, match="model must give finite vectors"):
        encoder.encode(["a", "b"])


def test_a_progress_bar_counts_texts_and_tokens(encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(["Guten Tag"] * 10, progress=True)
    shown = capsys.readouterr().err
    assert "10.0/10.0" in shown
    assert "tokens/s" in shown
    encoder.encode(["Guten Tag"] * 10)
    assert not capsys.readouterr().err
