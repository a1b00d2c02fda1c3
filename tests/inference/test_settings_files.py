"""Files of sentence-transformers folders that can't be right, and folders on the Hub. The package is not needed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT
from huggingface_hub.errors import LocalEntryNotFoundError

from erniem_fast.inference.loading import CheckpointError
from erniem_fast.inference.settings import read_settings

MODULES = "sentence_transformers.models"
FIRST = {"idx": 0, "name": "0", "path": "", "type": f"{MODULES}.Transformer"}
POOL = {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODULES}.Pooling"}


def module(kind: str, path: Any = "2_It") -> dict[str, Any]:
    return {"idx": 2, "name": "2", "path": path, "type": kind if "." in kind else f"{MODULES}.{kind}"}


DENSE = {"in_features": 8, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"modules.json": {}}, r"modules.json: must hold a list, got {}"),
    "no entries": (
        {"modules.json": []},
        r"modules.json: modules must be Transformer, Pooling, then any of Dense, .*; got none",
    ),
    "an entry of another kind": ({"modules.json": ["Dense"]}, "unknown module 'Dense'"),
    "no JSON": ({"modules.json": b"{"}, r"modules.json: can't be read \(Expecting"),
    "no UTF-8": ({"modules.json": b"\xff"}, r"modules.json: can't be read \('utf-8' codec"),
    **{
        kind: (
            {"modules.json": [FIRST, POOL, module(kind)]},
            f"unknown module '.*{kind}'; known are .*Transformer, Pooling, Dense",
        )
        for kind in (
            "WeightedLayerPooling",
            "CNN",
            "LSTM",
            "BoW",
            "Router",
            "Asym",
            "StaticEmbedding",
            "CLIPModel",
            "sentence_transformers.sparse_encoder.models.SpladePooling",
            "pylate.models.Dense.Dense",
            "modeling_custom.Pooling",
            "os.system",
        )
    },
    "a path outside": (
        {"modules.json": [FIRST, {**POOL, "path": "../1_Pooling"}]},
        r"path of Pooling must be a subfolder, got '../1_Pooling'",
    ),
    "an absolute path": (
        {"modules.json": [FIRST, {**POOL, "path": "/etc"}]},
        "path of Pooling must be a subfolder, got '/etc'",
    ),
    "no path": ({"modules.json": [FIRST, {"type": POOL["type"]}]}, "path of Pooling must be a subfolder, got None"),
    "no Pooling": ({"modules.json": [FIRST]}, "nothing but a Transformer; expected a Pooling"),
    "Dense first": ({"modules.json": [FIRST, module("Dense"), POOL]}, "got Transformer, Dense, Pooling"),
    "two Poolings": ({"modules.json": [FIRST, POOL, POOL]}, "got Transformer, Pooling, Pooling"),
    "no file of the Pooling": ({"1_Pooling/config.json": None}, r"1_Pooling/config.json: no such file"),
    "a mode": (
        {"1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": ["cls", "median"]}},
        r"pooling_mode must be of cls, .*got \['cls', 'median'\]",
    ),
    "no mode": ({"1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": []}}, r"got \[\]"),
    "a flag": (
        {"1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_cls_token": 1}},
        "pooling_mode_cls_token must be true or false, got 1",
    ),
    "a setting of Pooling": (
        {"1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_sum": True}},
        "unknown setting pooling_mode_sum; known are",
    ),
    "no width": ({"1_Pooling/config.json": {}}, "embedding_dimension must be an int of at least 1, got nothing"),
    "no weights": (
        {"2_Dense/config.json": DENSE},
        "2_Dense/model.safetensors: no such file, and no pytorch_model.bin either",
    ),
    "broken weights": (
        {"2_Dense/config.json": DENSE, "2_Dense/model.safetensors": b"1234"},
        r"2_Dense/model.safetensors: can't be read \(",
    ),
    "other weights": (
        {"2_Dense/config.json": DENSE, "2_Dense/pytorch_model.bin": {"weight": torch.ones(4, 8)}},
        "2_Dense/config.json: weights must be linear.weight, linear.bias; got weight",
    ),
    "weights of another shape": (
        {
            "2_Dense/config.json": DENSE,
            "2_Dense/pytorch_model.bin": {"linear.weight": torch.ones(8, 4), "linear.bias": torch.ones(4)},
        },
        r"linear.weight must have shape \(4, 8\), got \(8, 4\)",
    ),
    "a width": (
        {"2_Dense/config.json": DENSE | {"in_features": 9}},
        "in_features must be 8, the width of the vectors before it, got 9",
    ),
    "an activation": (
        {"2_Dense/config.json": DENSE | {"activation_function": "os.getcwd"}},
        "2_Dense/config.json: unknown activation function 'os.getcwd'; known are torch.nn's ReLU, ",
    ),
    "an activation with arguments": (
        {"2_Dense/config.json": DENSE | {"activation_function": "torch.nn.Threshold"}},
        "unknown activation function 'torch.nn.Threshold'",
    ),
    "tokens instead of vectors": (
        {"2_Dense/config.json": DENSE | {"module_input_name": "token_embeddings"}},
        "module_input_name must be 'sentence_embedding', got 'token_embeddings'",
    ),
    "a setting of Dense": (
        {"2_Dense/config.json": DENSE | {"dropout": 0.1}},
        "unknown setting dropout; known are in_features",
    ),
    "prompts": ({"config_sentence_transformers.json": {"prompts": ["query: "]}}, "prompts must hold texts by name"),
    "a default prompt": (
        {"config_sentence_transformers.json": {"prompts": {"query": "q"}, "default_prompt_name": "document"}},
        "default_prompt_name must be one of query, got 'document'",
    ),
    "a similarity": (
        {"config_sentence_transformers.json": {"similarity_fn_name": "maxsim"}},
        "similarity_fn_name must be one of cosine, dot, .*got 'maxsim'",
    ),
    "a model type": (
        {"config_sentence_transformers.json": {"model_type": "SparseEncoder"}},
        "model_type must be SentenceTransformer or CrossEncoder, got 'SparseEncoder'",
    ),
    "a CrossEncoder's Pooling": (
        {"config_sentence_transformers.json": {"model_type": "CrossEncoder"}},
        "a CrossEncoder must be a Transformer alone, got Transformer, Pooling",
    ),
    "a dimension": (
        {"config_sentence_transformers.json": {"truncate_dim": 0}},
        "truncate_dim must be an int of at least 1, got 0",
    ),
    "a length": (
        {"sentence_bert_config.json": {"max_seq_length": "512"}},
        "max_seq_length must be an int of at least 1, got '512'",
    ),
    "lower case": (
        {"sentence_bert_config.json": {"do_lower_case": "yes"}},
        "do_lower_case must be true or false, got 'yes'",
    ),
    "a setting of Transformer": (
        {"sentence_bert_config.json": {"tokenizer_name_or_path": "x"}},
        "unknown setting tokenizer_name_or_path",
    ),
    "arguments of the configuration": (
        {"sentence_bert_config.json": {"config_args": {"num_hidden_layers": 1}}},
        "unknown setting config_kwargs.num_hidden_layers",
    ),
    "a task": (
        {"sentence_bert_config.json": {"transformer_task": "fill-mask"}},
        "transformer_task must be feature-extraction or .*got 'fill-mask'",
    ),
    "another output": (
        {
            "sentence_bert_config.json": {
                "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}
            }
        },
        "modality_config must read last_hidden_state of forward for texts, got .*pooler_output",
    ),
    "arguments of the tokenizer": (
        {"sentence_bert_config.json": {"processing_kwargs": {"text": {"add_special_tokens": False}}}},
        "unknown setting processing_kwargs.text.add_special_tokens",
    ),
}


def write(folder: Path, files: dict[str, Any]) -> None:
    """Write a folder with a Pooling and, where `files` has it, a Dense."""
    listed = [FIRST, POOL, *([module("Dense", "2_Dense")] if any(name.startswith("2_Dense") for name in files) else [])]
    pooling = {"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}
    for name, held in ({"modules.json": listed, "1_Pooling/config.json": pooling} | files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(held, bytes):
            (folder / name).write_bytes(held)
        elif name.endswith(".bin"):
            torch.save(held, folder / name)
        elif held is not None:
            (folder / name).write_text(json.dumps(held))


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_what_we_do_not_know_is_refused_by_name(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_settings(str(tmp_path))
    assert str(raised.value).startswith(f"model {str(tmp_path)!r}: ")
    assert "\n" not in str(raised.value)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "written"), "w")

    write(tmp_path, {"2_Dense/config.json": DENSE, "2_Dense/pytorch_model.bin": {"linear.weight": Code()}})
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model.bin: can't be read \("):
        read_settings(str(tmp_path))
    assert not (tmp_path / "written").exists()


def test_nothing_imports_sentence_transformers() -> None:
    """But the module that is made for it."""
    imports = re.compile(r"^ *(from|import) sentence_transformers\b", re.MULTILINE)
    files = [*(ROOT / "erniem_fast").rglob("*.py")]
    found = [file.relative_to(ROOT) for file in files if imports.search(file.read_text(encoding="utf-8"))]
    assert found == [Path("erniem_fast/sentence_transformers.py")]


NAME = "some-one/embedder"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a repository in a cache, which is all that can be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40)


def test_a_name_on_the_hub(hub: Path) -> None:
    assert read_settings(NAME).pooling == ("mean",)
    write(hub, {"1_Pooling/config.json": {"word_embedding_dimension": 8, "pooling_mode_lasttoken": True}})
    assert read_settings(NAME).pooling == ("lasttoken",)


def test_a_hub_that_does_not_answer_is_no_plain_folder(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the cache says that there is no such file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def no_answer(name: str, file: str) -> Any:
        raise LocalEntryNotFoundError(f"no connection for {file}")

    monkeypatch.setattr("erniem_fast.inference.checkpoint_files.hf_hub_download", no_answer)
    with pytest.raises(CheckpointError, match=rf"model '{NAME}': modules.json: can't be asked for .*no connection"):
        read_settings(NAME)
    known = hub.parents[1] / ".no_exist" / ("0" * 40)
    known.mkdir(parents=True)
    for file in ("modules.json", "config.json"):
        (known / file).touch()
    assert read_settings(NAME).pooling == ("mean",)


def test_what_is_no_checkpoint_has_no_settings(tmp_path: Path) -> None:
    """The loading says what is wrong with it."""
    (tmp_path / "file").touch()
    for name in ("nowhere", str(tmp_path / "nowhere"), str(tmp_path / "file"), str(tmp_path)):
        assert read_settings(name).model_type is None
