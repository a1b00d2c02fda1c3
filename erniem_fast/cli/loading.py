"""Checkpoints of the command line: a folder or an id on the Hugging Face Hub, with one-line errors."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from ..configuration import ErnieMConfig
from ..modeling import ErnieMForInformationExtraction, ErnieMModel
from ..tokenization import VOCAB_FILES_NAMES, ErnieMTokenizer
from .errors import InputError

CHECKPOINT = (
    "a folder with config.json, the weights, vocab.txt and sentencepiece.bpe.model, or the id of one on the "
    "Hugging Face Hub"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""user/name."""


def load_config(name: str) -> ErnieMConfig:
    """Load the configuration of a checkpoint.

    Args:
        name: a folder, or user/name on the Hub. A folder of that name goes first.

    Raises:
        InputError: no such folder and no such id, or no ErnieM checkpoint in it.
    """
    problem = None
    file = Path(name) / "config.json"
    if _on_hub(name):
        with _as_input_error(f"--model {name!r}: no such folder, and no such model on the Hub or in its cache"):
            found = cached_file(name, "config.json")
            file = Path(found) if found else file
    elif not os.path.isdir(name):
        problem = "is not a folder" if os.path.exists(name) else "no such folder"
    elif os.path.isfile(file) and not [*Path(name).glob("*.safetensors"), *Path(name).glob("*.bin")]:
        problem = "holds no weights (no .safetensors, no .bin)"
    if problem is None and not os.path.isfile(file):
        problem = "holds no checkpoint (no config.json)"
    if problem and [*Path(name).glob("*.pdparams")]:
        problem = "holds a Paddle checkpoint, which `erniem-fast convert` turns into a folder"
    if problem:
        raise InputError(f"--model {name!r}: {problem}; expected {CHECKPOINT}")
    with _as_input_error(f"--model {name!r}: config.json can't be read"):
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if kind != "ernie_m":
            raise InputError(f"--model {name!r}: config.json has model_type {kind!r}; expected 'ernie_m'")
        return ErnieMConfig.from_pretrained(name, local_files_only=not _on_hub(name))


def load_tokenizer(name: str, config: ErnieMConfig) -> ErnieMTokenizer:
    """Load the tokenizer of a checkpoint.

    Raises:
        InputError: no tokenizer, or one with another vocabulary than the model's.
    """
    for file in VOCAB_FILES_NAMES.values():
        if not _holds(name, file):
            raise InputError(f"--model {name!r}: holds no tokenizer (no {file}); expected {CHECKPOINT}")
    with _as_input_error(f"--model {name!r}: the tokenizer can't be read"):
        tokenizer = ErnieMTokenizer.from_pretrained(name, local_files_only=not _on_hub(name))
    tokens, rows = len(tokenizer), config.vocab_size
    # Some pad the model's table to a multiple of 8 or more; anything else is another vocabulary.
    padded = rows % 8 == 0 and rows - tokens < 128
    if tokens > rows or (tokens < rows and not padded):
        raise InputError(
            f"--model {name!r}: the tokenizer has {tokens} tokens, the model's vocab_size is {rows}; "
            f"expected the same vocabulary for both"
        )
    return tokenizer


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's weights in a model.

    Attributes:
        model: an instance of a class in `modeling`, in eval mode.
        missing: parameters without weights; they are random.
        unexpected: weights without parameters.
        mismatched: weights of another shape than their parameters, which are random.
    """

    model: Any
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def load(name: str, cls: Any, dtype: torch.dtype | str, **options: Any) -> Loaded:
    """Load a checkpoint into a class of `modeling`, whatever its weights lack.

    Raises:
        InputError: the weights can't be read.
    """
    with _as_input_error(f"--model {name!r}: the weights can't be read"):
        model, info = cls.from_pretrained(
            name,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=not _on_hub(name),
            **options,
        )
    mismatched = sorted(f"{key} {tuple(given)} for {tuple(wanted)}" for key, given, wanted in info["mismatched_keys"])
    missing = sorted(set(info["missing_keys"]) - {key for key, *_ in info["mismatched_keys"]})
    return Loaded(model.eval(), missing, sorted(info["unexpected_keys"]), mismatched)


def load_encoder(name: str, dtype: torch.dtype, device: torch.device, pooler: bool = False) -> ErnieMModel:
    """Load the padding-free encoder of a checkpoint, without its head, in eval mode.

    Args:
        name: a folder, or an id on the Hub.
        dtype: dtype of the weights.
        device: device of the encoder.
        pooler: load the pooler, too.

    Raises:
        InputError: weights can't be read, are missing, or have other shapes or more layers than config.json says.
    """
    return _complete(name, load(name, ErnieMModel, dtype, add_pooling_layer=pooler)).to(device)


def load_head(name: str, cls: Any, config: ErnieMConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a padding-free model with its head, in eval mode.

    Args:
        name: a folder, or an id on the Hub.
        cls: the class in `modeling`.
        config: of the checkpoint.
        dtype: dtype of the weights.
        device: device of the model.

    Raises:
        InputError: the checkpoint is of another class; weights can't be read, are missing, or have other shapes or
            more layers than config.json says.
    """
    architectures = config.architectures or []
    if cls.__name__ not in architectures:
        held = ", ".join(architectures) or "no architecture"
        raise InputError(f"--model {name!r}: config.json names {held}; expected {cls.__name__}")
    loaded = load(name, cls, dtype)
    if cls is ErnieMForInformationExtraction:  # which has a pooler that no score reads; early uploads lack it
        missing = [key for key in loaded.missing if not key.startswith("ernie_m.pooler.")]
        loaded = replace(loaded, missing=missing)
    return _complete(name, loaded).to(device)


def _complete(name: str, loaded: Loaded) -> Any:
    beyond = [key for key in loaded.unexpected if "encoder.layers." in key]
    for problem, keys in (
        ("lack", loaded.missing),
        ("hold another shape of", loaded.mismatched),
        ("hold more layers:", beyond),
    ):
        if keys:
            # Parameters would be random, or layers skipped: better no result than that.
            raise InputError(
                f"--model {name!r}: the weights {problem} {listing(keys)}; "
                f"expected every parameter of the model in config.json's sizes"
            )
    return loaded.model


def listing(keys: list[str]) -> str:
    """The first three keys and the number of the others, or "none"."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") or "none"


def _on_hub(name: str) -> bool:
    return not os.path.exists(name) and HUB_ID.fullmatch(name) is not None


def _holds(name: str, file: str) -> bool:
    if not _on_hub(name):
        return os.path.isfile(Path(name) / file)
    try:
        return cached_file(name, file) is not None
    except OSError:
        return False


@contextmanager
def _as_input_error(what: str) -> Iterator[None]:
    """Make one line of whatever a reader of foreign files raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} ({reason}); expected {CHECKPOINT}") from error
