"""Checkpoints: a folder or an id on the Hugging Face Hub, with one-line errors.

ErnieM's are read by our classes, those of the other families by transformers' and made padding-free.
"""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file, logging

from .. import modeling
from ..auto_map import MODEL_TYPE
from ..configuration import ErnieMConfig
from ..modeling import ErnieMForInformationExtraction, ErnieMModel
from ..packed import SWAPS, PackedEncoder
from ..padding_free import padding_free
from ..tokenization import VOCAB_FILES_NAMES, ErnieMTokenizer

CHECKPOINT = (
    "a folder with config.json, the weights and the tokenizer's files, or the id of one on the Hugging Face Hub"
)
UNUSED_ROWS = 128
"""So many rows without a token, and the tokenizer is another model's."""
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.model", "spiece.model"
)  # fmt: skip
"""One of these holds the vocabulary of a tokenizer of transformers."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""user/name."""
MODEL_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")
"""Endings of the files that a checkpoint is made of."""
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "InformationExtraction")
"""Parts of the names of classes that `load_model` loads with their heads."""
LAYER = re.compile(r"\.\d+\.")
"""Number of a layer in a parameter's name."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message is one line: its name, the problem, what is accepted."""


def families() -> tuple[str, ...]:
    """Every model_type that `padding_free` takes, and ErnieM's."""
    from .. import families, xlm  # noqa: F401  (they fill SWAPS)

    encoders: list[Any] = [cls for cls, swapped in SWAPS.items() if issubclass(swapped, PackedEncoder)]
    return MODEL_TYPE, *sorted({cls.config_class.model_type for cls in encoders})


def load_config(name: str, any_family: bool = False) -> Any:
    """Load the configuration of a checkpoint.

    Args:
        name: a folder, or user/name on the Hub. A folder of that name goes first.
        any_family: take every family that `padding_free` takes, and not ErnieM alone.

    Returns:
        An ErnieMConfig, or transformers' configuration of another family.

    Raises:
        CheckpointError: no such folder and no such id, or no checkpoint of such a family in it.
    """
    problem = None
    file = Path(name) / "config.json"
    if _on_hub(name):
        with _as_checkpoint_error(f"model {name!r}: no such folder, and no such model on the Hub or in its cache"):
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
        raise CheckpointError(f"model {name!r}: {problem}; expected {CHECKPOINT}")
    with _as_checkpoint_error(f"model {name!r}: config.json can't be read"):
        fields = json.loads(file.read_text(encoding="utf-8"))
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        kinds = families() if any_family and kind != MODEL_TYPE else (MODEL_TYPE,)
        if kind not in kinds:
            expected = " or ".join(filter(None, (", ".join(map(repr, kinds[:-1])), repr(kinds[-1]))))
            raise CheckpointError(f"model {name!r}: config.json has model_type {kind!r}; expected {expected}")
        if kind == MODEL_TYPE:
            return ErnieMConfig.from_pretrained(name, local_files_only=not _on_hub(name))
        return AutoConfig.from_pretrained(name, local_files_only=not _on_hub(name), trust_remote_code=False)


def model_files(name: str) -> str | None:
    """A digest that changes when a checkpoint's files do; None if there are none."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            found = cached_file(name, "config.json")
        except (OSError, ValueError):
            found = None
        if found is None:
            return None
        folder = Path(found).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix in MODEL_FILES and path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def inner_folder(name: str, folder: str) -> str:
    """Path of a folder within a checkpoint, which is fetched from the Hub if need be; "": the checkpoint itself.

    Raises:
        CheckpointError: it can't be fetched.
    """
    if not folder:
        return name
    if not _on_hub(name):
        return str(Path(name) / folder)
    with _as_checkpoint_error(f"model {name!r}: its folder {folder} can't be fetched"):
        return str(Path(snapshot_download(name, allow_patterns=f"{folder}/*")) / folder)


def has_tokenizer(name: str) -> bool:
    """True if a checkpoint holds the vocabulary of a tokenizer of transformers."""
    return any(_holds(name, file) for file in TOKENIZER_FILES)


def load_tokenizer(name: str, config: Any) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: no tokenizer, or one with another vocabulary than the model's.
    """
    ours = isinstance(config, ErnieMConfig)
    reader = ErnieMTokenizer if ours else AutoTokenizer
    if config.model_type == "xlm" and find_spec("sacremoses") is None:
        raise CheckpointError(
            f"model {name!r}: XLM's tokenizer needs the package sacremoses, which is not installed; "
            f"expected `pip install 'erniem_fast[xlm]'`"
        )
    if ours:
        lacking = next((file for file in VOCAB_FILES_NAMES.values() if not _holds(name, file)), None)
    else:
        # transformers would make one that has no vocabulary.
        lacking = None if has_tokenizer(name) else "tokenizer.json"
    if lacking is not None:
        raise CheckpointError(f"model {name!r}: holds no tokenizer (no {lacking}); expected {CHECKPOINT}")
    with _as_checkpoint_error(f"model {name!r}: the tokenizer can't be read"):
        # None would ask on the terminal whether code of the checkpoint may run.
        options = {} if ours else {"trust_remote_code": False}
        tokenizer = reader.from_pretrained(name, local_files_only=not _on_hub(name), **options)
    tokens, rows = len(tokenizer), config.vocab_size
    # ErnieM's table is at most padded to a multiple of 8; those of other families may have any rows to spare.
    unused = (rows % 8 == 0 or not ours) and rows - tokens < UNUSED_ROWS
    if tokens > rows or (tokens < rows and not unused):
        raise CheckpointError(
            f"model {name!r}: the tokenizer has {tokens} tokens, the model's vocab_size is {rows}; "
            f"expected the same vocabulary for both"
        )
    return tokenizer


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's weights in a model.

    Attributes:
        model: in eval mode.
        missing: parameters without weights; they are random.
        unexpected: weights without parameters.
        mismatched: weights of another shape than their parameters, which are random.
    """

    model: Any
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def load(name: str, cls: Any, dtype: torch.dtype | str, **options: Any) -> Loaded:
    """Load a checkpoint into a model class, whatever its weights lack.

    Raises:
        CheckpointError: the weights can't be read.
    """
    with _as_checkpoint_error(f"model {name!r}: the weights can't be read"), _without_reports():
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


def load_encoder(name: str, dtype: torch.dtype, device: torch.device, pooler: bool = False, config: Any = None) -> Any:
    """Load the padding-free encoder of a checkpoint, without its head, in eval mode.

    Args:
        name: a folder, or an id on the Hub.
        dtype: dtype of the weights.
        device: device of the encoder.
        pooler: load the pooler, too, where the class has one.
        config: of the checkpoint; None: ErnieM's.

    Raises:
        CheckpointError: weights can't be read, are missing, or have other shapes or more layers than config.json says;
            or the model is a decoder.
    """
    cls = ErnieMModel if config is None else model_class(config)
    takes_pooler = "add_pooling_layer" in inspect.signature(cls).parameters
    options = {"add_pooling_layer": pooler} if takes_pooler else {}
    return _packed(name, _complete(name, load(name, cls, dtype, **options))).to(device)


def model_class(config: Any, named: str | None = None) -> Any:
    """Class of a model of the configuration's family.

    Args:
        config: of ErnieM or another family.
        named: name of a head in transformers; anything else: the encoder.
    """
    if isinstance(config, ErnieMConfig):
        return ErnieMModel
    head = getattr(transformers, named or "", None)
    of_family = isinstance(head, type) and getattr(head, "config_class", None) is type(config)
    return head if of_family else AutoModel._model_mapping[type(config)]


def load_head(name: str, cls: Any, config: ErnieMConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a padding-free model with its head, in eval mode.

    Args:
        name: a folder, or an id on the Hub.
        cls: the class in `modeling`.
        config: of the checkpoint.
        dtype: dtype of the weights.
        device: device of the model.

    Raises:
        CheckpointError: the checkpoint is of another class; weights can't be read, are missing, or have other shapes or
            more layers than config.json says.
    """
    architectures = config.architectures or []
    if cls.__name__ not in architectures:
        held = ", ".join(architectures) or "no architecture"
        raise CheckpointError(f"model {name!r}: config.json names {held}; expected {cls.__name__}")
    loaded = load(name, cls, dtype)
    if cls is ErnieMForInformationExtraction:  # which has a pooler that no score reads; early uploads lack it
        missing = [key for key in loaded.missing if not key.startswith("ernie_m.pooler.")]
        loaded = replace(loaded, missing=missing)
    return _complete(name, loaded).to(device)


def load_model(name: str, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the padding-free model that a checkpoint is of, in eval mode: with its head if it is one of `HEADS`.

    Args:
        name: a folder, or an id on the Hub.
        config: of the checkpoint.
        dtype: dtype of the weights.
        device: device of the model.

    Raises:
        CheckpointError: as `load_encoder` and `load_head`.
    """
    for architecture in config.architectures or []:
        if any(head in architecture for head in HEADS):
            if isinstance(config, ErnieMConfig) and hasattr(modeling, architecture):
                return load_head(name, getattr(modeling, architecture), config, dtype, device)
            cls = model_class(config, architecture)
            if cls.__name__ == architecture:
                return _packed(name, _complete(name, load(name, cls, dtype))).to(device)
    return load_encoder(name, dtype, device, config=config)


def max_tokens_of(config: Any) -> int:
    """Most tokens of a sequence that a model of this configuration takes, special tokens included."""
    with torch.device("meta"):  # what a family's positions begin with, its encoder alone knows
        encoder = model_class(config)(config)
    limit: int = padding_free(encoder).limits.max_tokens
    return limit


def load_trainable(name: str, cls: Any, config: Any, new_head: bool) -> tuple[Any, list[str]]:
    """Load a model to be trained, in float32, whose head may be new; made padding-free, in training mode.

    Args:
        name: a folder, or an id on the Hub.
        cls: class of the model.
        config: of the model, whose labels may be others than the checkpoint's.
        new_head: make a new head even where the checkpoint has one.

    Returns:
        The model, and the names of its parameters that are new, random ones: the head's, or a pooler's.

    Raises:
        CheckpointError: weights can't be read, or are missing in the encoder, or have other shapes or more layers than
            config.json says; or the model is a decoder.
    """
    loaded = load(name, cls, torch.float32, config=config)
    model, prefix = loaded.model, f"{loaded.model.base_model_prefix}."
    head = {key for key in model.state_dict() if model.base_model is not model and not key.startswith(prefix)}
    mismatched = {line.split(" ")[0]: line for line in loaded.mismatched}

    def is_new(key: str) -> bool:
        return key in head or key.removeprefix(prefix).startswith("pooler.")

    new = {key for key in {*loaded.missing, *mismatched} if is_new(key)}
    if new_head:
        new |= head
        for path, module in model.named_modules():
            for key, parameter in module.named_parameters(prefix=path, recurse=False):
                if key in head:
                    parameter._is_hf_initialized = False  # or transformers would leave what it has loaded
            if any(f"{path}.{key}" in head for key, _ in module.named_parameters(recurse=False)):
                model._init_weights(module)
    rest = replace(
        loaded,
        missing=[key for key in loaded.missing if not is_new(key)],
        mismatched=[line for key, line in mismatched.items() if not is_new(key)],
    )
    return _packed(name, _complete(name, rest)).train(), sorted(new)


def _packed(name: str, model: Any) -> Any:
    """Make a model padding-free, which only an encoder can be."""
    model = padding_free(model)
    encoder = model.base_model
    reason = encoder.reason_not_packed({}) if isinstance(encoder, PackedEncoder) else None
    if reason:
        raise CheckpointError(f"model {name!r}: can't be computed without padding: {reason}; expected an encoder")
    return model


def _complete(name: str, loaded: Loaded) -> Any:
    for problem, keys in (
        ("lack", loaded.missing),
        ("hold another shape of", loaded.mismatched),
        ("hold more layers, or more in them:", further_in_layers(loaded)),
    ):
        if keys:
            # Parameters would be random, or layers skipped: better no result than that.
            raise CheckpointError(
                f"model {name!r}: the weights {problem} {listing(keys)}; "
                f"expected every parameter of the model in config.json's sizes"
            )
    return loaded.model


def further_in_layers(loaded: Loaded) -> list[str]:
    """Weights without parameters in layers: in some that config.json does not count, or in parts that ours lack."""
    stacks = {key[: match.start()] for key in loaded.model.state_dict() if (match := LAYER.search(key))}
    prefix, found = f"{loaded.model.base_model_prefix}.", []
    for key in loaded.unexpected:
        match = LAYER.search(key)
        if match and {key[: match.start()], key[: match.start()].removeprefix(prefix)} & stacks:
            found.append(key)
    return found


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
def _as_checkpoint_error(what: str) -> Iterator[None]:
    """Make one line of whatever a reader of foreign files raises."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{what} ({reason}); expected {CHECKPOINT}") from error


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from printing a table of weights left over, such as a pooler's, which `Loaded` tells."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
