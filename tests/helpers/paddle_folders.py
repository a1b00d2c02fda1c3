"""Folders as PaddleNLP saves ERNIE-M, written with numpy alone."""

import json
import pickle
import pickletools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erniem_fast import ErnieMConfig, ErnieMForInformationExtraction
from helpers.pairs import SIZES
from helpers.paths import GOLDEN_TOKENIZER

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2", "dense", "classifier", "qa_outputs")
CLASSES_IN_PADDLE = {
    "ErnieMModel": "ErnieMModel",
    "ErnieMForSequenceClassification": "ErnieMForSequenceClassification",
    "ErnieMForTokenClassification": "ErnieMForTokenClassification",
    "ErnieMForMultipleChoice": "ErnieMForMultipleChoice",
    "ErnieMForQuestionAnswering": "ErnieMForQuestionAnswering",
    "ErnieMForInformationExtraction": "UIEM",
}
FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range",
)  # fmt: skip


def paddle_arrays(model: Any, prefix: str = "ernie_m.", dtype: str = "float32") -> dict[str, np.ndarray]:
    """A model's parameters as Paddle names and stores them. A head without a pooler gets one, as in PaddleNLP."""
    arrays = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("self_attn.self_attn.", "self_attn.").replace("qa_outputs", "classifier")
        if name.startswith("ernie_m."):
            name = prefix + name.removeprefix("ernie_m.")
        module = key.split(".")[-2]
        linear = module in LINEARS or module.startswith("linear_")
        arrays[name] = to_array(tensor.T if linear and tensor.dim() == 2 else tensor, dtype)
    size = model.config.hidden_size
    if prefix + "pooler.dense.weight" not in arrays and hasattr(model, "ernie_m"):
        arrays[prefix + "pooler.dense.weight"] = to_array(torch.randn(size, size), dtype)
        arrays[prefix + "pooler.dense.bias"] = to_array(torch.randn(size), dtype)
    return arrays


def to_array(tensor: Tensor, dtype: str = "float32") -> np.ndarray:
    """An array of its own; bfloat16 as uint16, as Paddle stores it."""
    if dtype == "bfloat16":
        return tensor.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint16).copy()
    return np.ascontiguousarray(tensor.detach().numpy().astype(dtype))


def in_chunks(arrays: dict[str, np.ndarray], most: int) -> dict[str, Any]:
    """Arrays of more than `most` elements in chunks, as paddle.save stores those of more than 1 GiB."""
    result: dict[str, Any] = {}
    chunks = {}
    for key, array in arrays.items():
        if array.size <= most:
            result[key] = array
            continue
        flat = array.flatten()
        names = [f"{key}@@.{start // most}" for start in range(0, array.size, most)]
        result |= {name: flat[i * most : (i + 1) * most] for i, name in enumerate(names)}
        chunks[key] = {"OriginShape": array.shape, "slices": names}
    assert chunks
    return result | {"UnpackBigParamInfor@@": chunks}


def pickled(arrays: Any, protocol: int = 4, numpy_1: bool = False) -> bytes:
    """What paddle.save writes: the arrays and Paddle's internal names; `numpy_1` as numpy 1 names its functions."""
    content = pickle.dumps({**arrays, "StructuredToParameterName@@": {key: f"p_{key}" for key in arrays}}, protocol)
    if numpy_1:
        new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
        if protocol == 4:
            new, old = bytes([len(new)]) + new, bytes([len(old)]) + old
        assert new in content
        content = pickletools.optimize(content.replace(new, old))  # with frames of the right length
    return content


def old_config(model: Any, *positional: Any) -> dict[str, Any]:
    """model_config.json as PaddleNLP wrote it before its models had configurations."""
    encoder = {name: getattr(model.config, name) for name in FIELDS}
    encoder |= {"pad_token_id": 1, "init_class": "ErnieMModel"}
    name = CLASSES_IN_PADDLE[type(model).__name__]
    return encoder if name == "ErnieMModel" else {"init_args": [encoder, *positional], "init_class": name}


def new_config(model: Any, **changes: Any) -> dict[str, Any]:
    """config.json as PaddleNLP writes it now; its [PAD] is 0 by default."""
    fields: dict[str, Any] = {name: getattr(model.config, name) for name in FIELDS}
    fields |= {"architectures": [CLASSES_IN_PADDLE[type(model).__name__]], "model_type": "ernie_m", "pad_token_id": 0}
    return fields | {"type_vocab_size": 16, "intermediate_size": 3072, "paddlenlp_version": None} | changes


def write(folder: Path, weights: bytes, config: dict[str, Any], config_name: str = "config.json") -> Path:
    """A folder with the golden tokenizer, as PaddleNLP lays it out."""
    folder.mkdir()
    (folder / "model_state.pdparams").write_bytes(weights)
    (folder / config_name).write_text(json.dumps(config))
    for name in ("vocab.txt", "sentencepiece.bpe.model"):
        shutil.copy(GOLDEN_TOKENIZER / name, folder)
    fields = {"do_lower_case": True, "unk_token": "[UNK]", "tokenizer_class": "ErnieMTokenizer", "vocab_file": "x/y"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def write_uie_m(folder: Path) -> Path:
    """A tiny UIE-M in the form before configurations."""
    size = len((GOLDEN_TOKENIZER / "vocab.txt").read_text(encoding="utf-8").splitlines())
    sizes = SIZES | {"vocab_size": size, "max_position_embeddings": 514, "intermediate_size": 4 * SIZES["hidden_size"]}
    model = ErnieMForInformationExtraction(ErnieMConfig(**sizes))
    return write(folder, pickled(paddle_arrays(model, "encoder."), 2), old_config(model), "model_config.json")
