"""Checkpoints of PaddleNLP: folders with a `.pdparams` file, a configuration and the tokenizer's files.

The tables at the top give the names of a family of models; `array_pickle.read` reads the file.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import modeling
from .array_pickle import read
from .configuration import ErnieMConfig
from .inference.progress import progress_bar
from .tokenization import VOCAB_FILES_NAMES, ErnieMTokenizer


@dataclass(frozen=True)
class Kind:
    """A kind of module.

    Attributes:
        dimensions: of its parameters, by name.
        transposed: True if Paddle stores the weight transposed: (in_features, out_features).
    """

    dimensions: Mapping[str, int]
    transposed: bool = False


LINEAR = Kind({"weight": 2, "bias": 1}, transposed=True)
NORM = Kind({"weight": 1, "bias": 1})
EMBEDDING = Kind({"weight": 2})


@dataclass(frozen=True)
class Head:
    """A class of PaddleNLP's.

    Attributes:
        class_name: our class.
        linears: its linear layers: their names in Paddle, and ours.
        counted: our name of the one that has a row a label, which the configuration need not count.
    """

    class_name: str
    linears: Mapping[str, str]
    counted: str | None = None


@dataclass(frozen=True)
class Family:
    """Names in a family of checkpoints. `{}` stands for the number of a layer.

    Attributes:
        model_type: what config.json says.
        prefix: name of the encoder in our heads, with a dot.
        prefixes: names of the encoder in Paddle's, each with a dot.
        embeddings: tables: their names in Paddle, and ours.
        norms: layer-norms, likewise.
        linears: linear layers, likewise.
        buffers: tensors that are no parameters.
        heads: classes by their names in Paddle.
    """

    model_type: str
    prefix: str
    prefixes: tuple[str, ...]
    embeddings: Mapping[str, str]
    norms: Mapping[str, str]
    linears: Mapping[str, str]
    buffers: frozenset[str]
    heads: Mapping[str, Head]

    def modules(self, prefix: str, head: Head) -> dict[str, tuple[str, Kind]]:
        """Our name and the kind of each module, by its name in Paddle with `prefix` before the encoder's."""
        ours = self.prefix if head.linears else ""
        encoder = {
            prefix + theirs: (ours + name, kind)
            for kind, names in ((EMBEDDING, self.embeddings), (NORM, self.norms), (LINEAR, self.linears))
            for theirs, name in names.items()
        }
        return encoder | {theirs: (name, LINEAR) for theirs, name in head.linears.items()}


CLASSIFIER = {"classifier": "classifier"}
ERNIE_M = Family(
    model_type="ernie_m",
    prefix="ernie_m.",
    prefixes=("ernie_m.", "encoder."),
    embeddings={
        "embeddings.word_embeddings": "embeddings.word_embeddings",
        "embeddings.position_embeddings": "embeddings.position_embeddings",
    },
    norms={
        "embeddings.layer_norm": "embeddings.layer_norm",
        "encoder.layers.{}.norm1": "encoder.layers.{}.norm1",
        "encoder.layers.{}.norm2": "encoder.layers.{}.norm2",
    },
    linears={
        "encoder.layers.{}.self_attn.q_proj": "encoder.layers.{}.self_attn.self_attn.q_proj",
        "encoder.layers.{}.self_attn.k_proj": "encoder.layers.{}.self_attn.self_attn.k_proj",
        "encoder.layers.{}.self_attn.v_proj": "encoder.layers.{}.self_attn.self_attn.v_proj",
        "encoder.layers.{}.self_attn.out_proj": "encoder.layers.{}.self_attn.out_proj",
        "encoder.layers.{}.linear1": "encoder.layers.{}.linear1",
        "encoder.layers.{}.linear2": "encoder.layers.{}.linear2",
        "pooler.dense": "pooler.dense",
    },
    buffers=frozenset({"embeddings.position_ids"}),
    heads={
        "ErnieMModel": Head("ErnieMModel", {}),
        "ErnieMForSequenceClassification": Head("ErnieMForSequenceClassification", CLASSIFIER, "classifier"),
        "ErnieMForTokenClassification": Head("ErnieMForTokenClassification", CLASSIFIER, "classifier"),
        "ErnieMForMultipleChoice": Head("ErnieMForMultipleChoice", CLASSIFIER),
        "ErnieMForQuestionAnswering": Head("ErnieMForQuestionAnswering", {"classifier": "qa_outputs"}),
        "UIEM": Head("ErnieMForInformationExtraction", {"linear_start": "linear_start", "linear_end": "linear_end"}),
    },
)

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
"""Number of a layer in the name of a module."""


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy an array of floating-point numbers, or of bfloat16 as uint16, into a tensor.

    Raises:
        ValueError: an array of other numbers.
    """
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind != "f":
        raise ValueError(f"expected floating-point numbers, got {array.dtype}")
    return torch.from_numpy(array)


@dataclass(frozen=True)
class Converted:
    """Parameters under our names.

    Attributes:
        head: the class that they are of.
        state_dict: its parameters, all of the dtype that holds each of the file's.
    """

    head: Head
    state_dict: dict[str, Tensor]


def convert(
    arrays: dict[str, np.ndarray],
    architecture: str | None = None,
    family: Family = ERNIE_M,
    advance: Callable[[int], object] = lambda count: None,
) -> Converted:
    """Give the arrays of a `.pdparams` file our names and layout, as tensors. `arrays` is emptied, to save memory.

    Args:
        arrays: by their names in Paddle.
        architecture: the class in Paddle; None: the one that the names tell.
        family: the names.
        advance: called with 1 for each array.

    Raises:
        ValueError: unknown names, an unknown architecture, or none where the names don't tell it.
    """
    table = f"{next(iter(family.embeddings))}.weight"
    prefix = next((prefix for prefix in ("", *family.prefixes) if prefix + table in arrays), None)
    if prefix is None:
        raise ValueError(f"the weights hold no {table}; expected those of a {family.model_type} model")
    if architecture is None:
        architecture = _architecture(arrays, family)
    if architecture not in family.heads:
        raise ValueError(f"the class is {architecture!r}; expected one of {', '.join(family.heads)}")
    head = family.heads[architecture]
    modules = family.modules(prefix, head)
    state: dict[str, Tensor] = {}
    unknown = []
    for key in list(arrays):
        array = arrays.pop(key)
        advance(1)
        module, _, parameter = key.rpartition(".")
        # A name that holds {} itself is none of the table's.
        template = "" if "{" in module else NUMBER.sub("{}", module)
        name, kind = modules.get(template, ("", EMBEDDING))
        if name and kind.dimensions.get(parameter) == array.ndim:
            name = f"{name.format(*NUMBER.findall(module))}.{parameter}"
            state[name] = to_tensor(array.T if kind.transposed else array)
        elif key.removeprefix(prefix) not in family.buffers:
            unknown.append(f"{key} {array.shape}")
    if unknown:
        raise ValueError(f"{architecture} has no such parameters: {_listing(unknown)}")
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in state.values()})
    return Converted(head, {name: tensor.to(dtype) for name, tensor in state.items()})


def _architecture(arrays: Mapping[str, np.ndarray], family: Family) -> str:
    linears = {name for head in family.heads.values() for name in head.linears}
    found = {name for name in linears if f"{name}.weight" in arrays}
    names = [name for name, head in family.heads.items() if head.linears.keys() == found]
    if len(names) != 1:
        raise ValueError(f"the configuration names no class, and the weights fit {', '.join(names) or 'none'}")
    return names[0]


def _listing(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join([first, *others[:4]]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint of PaddleNLP's, as ours.

    Attributes:
        model: the model, in eval mode.
        tokenizer: the tokenizer.
        architecture: the class in Paddle.
        dropped: parameters that our class has no place for: the pooler, where the head doesn't read it.
    """

    model: Any
    tokenizer: ErnieMTokenizer
    architecture: str
    dropped: list[str]


def load(folder: str | Path, progress: bool = False) -> Loaded:
    """Load a folder of PaddleNLP's: an ERNIE-M model with any head, or UIE-M.

    Args:
        folder: with one `.pdparams` file, config.json or the older model_config.json, vocab.txt,
            sentencepiece.bpe.model and perhaps tokenizer_config.json.
        progress: draw a bar on stderr.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: a file does not hold what its name promises, or parameters are missing or unknown.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is no folder")
    weights = sorted(folder.glob("*.pdparams"))
    if len(weights) != 1:
        names = ", ".join(file.name for file in weights) or "none"
        raise ValueError(f"{str(folder)!r} must hold one .pdparams file, with all parameters, got {names}")
    fields = _read_config(folder)
    tokenizer = _load_tokenizer(folder)
    with progress_bar(weights[0].stat().st_size, "reading", "B", progress) as bar:
        arrays = read(weights[0], bar.update)
    with progress_bar(len(arrays), "converting", " arrays", progress) as bar:
        architecture = fields.pop("architecture") or _architecture(arrays, ERNIE_M)
        converted = convert(arrays, architecture, ERNIE_M, bar.update)
    config = _config(fields, converted, tokenizer)
    model, dropped = _model(converted, config)
    return Loaded(model, tokenizer, architecture, dropped)


def _model(converted: Converted, config: ErnieMConfig) -> tuple[Any, list[str]]:
    with torch.device("meta"):
        model = getattr(modeling, converted.head.class_name)(config)
    found, expected = converted.state_dict, model.state_dict()
    dropped = [name for name in found if name not in expected and name.startswith(f"{ERNIE_M.prefix}pooler.")]
    state = {name: tensor for name, tensor in found.items() if name not in dropped}
    for problem, names in (
        ("lack", expected.keys() - state.keys()),
        ("hold more than config.json says:", state.keys() - expected.keys()),
        (
            "have other shapes than config.json says:",
            {name for name in state.keys() & expected.keys() if state[name].shape != expected[name].shape},
        ),
    ):
        if names:
            raise ValueError(f"the weights {problem} {_listing(names)}")
    model.load_state_dict(state, assign=True)
    return model.eval(), dropped


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} must hold an object, got {type(content).__name__}")
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    names = ("config.json", "model_config.json")
    for name in names:
        if (folder / name).is_file():
            return flatten_config(_read_json(folder / name))
    raise FileNotFoundError(f"{str(folder)!r} holds no configuration; expected {' or '.join(names)}")


def flatten_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config.json, or of an older model_config.json with the encoder's in `init_args`, on one level.

    `architecture` becomes the class in Paddle, of `architectures` or `init_class`; None if neither is there.

    Raises:
        ValueError: a field of another type than PaddleNLP writes.
    """
    flat = dict(fields)
    names = [flat.pop("init_class")] if "init_class" in flat else flat.get("architectures") or [None]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str | None):
        raise ValueError(f"architectures must name one class, got {names!r:.200}")
    arguments = flat.pop("init_args", [])
    if not isinstance(arguments, list):
        raise ValueError(f"init_args must be a list, got {type(arguments).__name__}")
    for inner in arguments:
        if isinstance(inner, dict):  # a number is the one of classes, which the weights tell
            flat = flatten_config(inner) | flat
    return flat | {"architecture": names[0] or flat.get("architecture")}


FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range", "classifier_dropout", "id2label",
    "label2id",
)  # fmt: skip
"""Fields that our configuration takes over. Others are PaddleNLP's own, or the weights and the tokenizer tell them."""


def _config(fields: dict[str, Any], converted: Converted, tokenizer: ErnieMTokenizer) -> ErnieMConfig:
    state = converted.state_dict
    kind = fields.get("model_type", ERNIE_M.model_type)
    if kind != ERNIE_M.model_type:
        raise ValueError(f"model_type is {kind!r}; expected {ERNIE_M.model_type!r}")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in sizes if fields.get(name) is None]
    if missing:
        raise ValueError(f"the configuration lacks {_listing(missing)}")
    layers = {key.split(".layers.")[1].split(".")[0] for key in state if ".layers." in key}
    if fields["num_hidden_layers"] != len(layers):
        raise ValueError(f"num_hidden_layers is {fields['num_hidden_layers']!r}, and the weights hold {len(layers)}")
    taken = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    if "dropout" in fields:  # of the heads, before PaddleNLP's classes took a configuration
        taken.setdefault("classifier_dropout", fields["dropout"])
    # PaddleNLP reads neither of these: its feed-forward is always 4 hidden_size wide, and its classes, made with a
    # number of labels, need not name it.
    widths = [len(value) for key, value in state.items() if key.endswith("linear1.bias")]
    if not widths:
        raise ValueError("the weights lack linear1.bias of every layer")
    taken["intermediate_size"] = widths[0]
    counted = state.get(f"{converted.head.counted}.bias")
    if counted is not None and "id2label" not in taken:
        taken["num_labels"] = len(counted)
    # PaddleNLP's configuration says 0 by default, which is [CLS].
    return ErnieMConfig(pad_token_id=tokenizer.pad_token_id, **taken)


def _load_tokenizer(folder: Path) -> ErnieMTokenizer:
    vocab, pieces = (folder / name for name in VOCAB_FILES_NAMES.values())
    for file in (vocab, pieces):
        if not file.is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no tokenizer (no {file.name})")
    file = folder / "tokenizer_config.json"
    fields = _read_json(file) if file.is_file() else {}
    names = ("do_lower_case", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    options = {name: fields[name] for name in names if isinstance(fields.get(name), str | bool)}
    return ErnieMTokenizer(pieces, vocab, **options)
