"""Checkpoints of Paddle: folders with a `.pdparams` file, a configuration and the tokenizer's files.

`array_pickle.read` reads the file, the tables in `checkpoints` give its parameters their names here, and
`paddle_ernie_m` and `paddle_ernie` read what the folders say besides.
"""

import json
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from . import modeling
from .array_pickle import read
from .checkpoints import ERNIE_M, ERNIE_ORIGINAL, ERNIE_PADDLENLP, ERNIE_STATIC
from .inference.progress import progress_bar
from .paddle_ernie import ernie_config, ernie_tokenizer, refuse_relatives
from .paddle_ernie_m import ernie_m_config, ernie_m_tokenizer
from .paddle_names import LAYER_NUMBER, Family, Head


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
    prefix = family.prefix_in(arrays)
    if prefix is None:
        raise ValueError(f"the weights hold no {family.word_table}; expected those of a {family.model_type} model")
    if architecture is None:
        architecture = _architecture(arrays, family)
    if architecture not in family.heads:
        raise ValueError(f"the class is {architecture!r}; expected one of {', '.join(family.heads)}")
    head = family.heads[architecture]
    parameters = family.parameters(prefix, head)
    state: dict[str, Tensor] = {}
    unknown = []
    for key in list(arrays):
        array = arrays.pop(key)
        advance(1)
        # A name that holds {} itself is none of the table's.
        parameter = None if "{" in key else parameters.get(LAYER_NUMBER.sub("{}", key))
        if parameter is not None and parameter.dimensions == array.ndim:
            name = parameter.name.format(*LAYER_NUMBER.findall(key))
            state[name] = to_tensor(array.T if parameter.transposed else array)
        elif key.removeprefix(prefix) not in family.buffers:
            unknown.append(f"{key} {array.shape}")
    if unknown:
        raise ValueError(f"{architecture} has no such parameters: {_listing(unknown)}")
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in state.values()})
    return Converted(head, {name: tensor.to(dtype) for name, tensor in state.items()})


def _architecture(keys: Container[str], family: Family) -> str:
    names = family.fitting(keys)
    if not names or any(family.heads[name] != family.heads[names[0]] for name in names):
        raise ValueError(
            f"the configuration names no class, and the weights fit {', '.join(names) or 'none'}; "
            "expected it as architectures: [name]"
        )
    return names[0]


def _listing(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return ", ".join([first, *others[:4]]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint of Paddle's, as a model of this package (ERNIE-M) or of transformers (ERNIE).

    Attributes:
        model: the model, in eval mode.
        tokenizer: the tokenizer; None for ERNIE-Tiny, whose own has no class in transformers.
        architecture: the class in Paddle.
        dropped: parameters that the class has no place for: the pooler, where the head doesn't read it, and the table
            of task types, where the configuration says that it is not used.
        kept: parameters that `save` writes though the class has no place for them: a pre-trained pooler, which the
            encoder by itself reads.
    """

    model: Any
    tokenizer: Any
    architecture: str
    dropped: list[str]
    kept: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` loads."""
        self.model.save_pretrained(folder, state_dict=self.model.state_dict() | self.kept)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        else:  # a name that AutoTokenizer refuses: without one it makes up a tokenizer of BERT's kind with five tokens
            (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ErnieTinyTokenizer"}))


def load(folder: str | Path, progress: bool = False) -> Loaded:
    """Load a folder of PaddleNLP's or of ERNIE's repository.

    ERNIE-M with any head and UIE-M give models of this package, ERNIE 1.0, 2.0, 3.0, Tiny and Gram zh those of
    transformers.

    Args:
        folder: with one `.pdparams` file, its configuration (config.json, the older model_config.json, or
            ernie_config.json), vocab.txt, sentencepiece.bpe.model of ERNIE-M and perhaps tokenizer_config.json.
        progress: draw a bar on stderr.

    Raises:
        OSError: a file is missing or can't be read.
        ValueError: a file does not hold what its name promises, parameters are missing or unknown, or they are those
            of another model, which is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is no folder")
    weights = sorted(folder.glob("*.pdparams"))
    if len(weights) != 1:
        names = ", ".join(file.name for file in weights) or "none"
        hint = "; docs/paddle.md says how to make one of params" if (folder / "params").is_dir() else ""
        raise ValueError(f"{str(folder)!r} must hold one .pdparams file, with all parameters, got {names}{hint}")
    fields = _read_config(folder)
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no tokenizer (no vocab.txt)")
    with progress_bar(weights[0].stat().st_size, "reading", "B", progress) as bar:
        arrays = read(weights[0], bar.update)
    family = _family(fields, arrays)
    with progress_bar(len(arrays), "converting", " arrays", progress) as bar:
        architecture = fields.pop("architecture") or _architecture(arrays, family)
        converted = convert(arrays, architecture, family, bar.update)
    _check_num_layers(fields, converted.state_dict)
    config, tokenizer = _read_folder(folder, fields, converted, family)
    return _loaded(converted, config, tokenizer, architecture, family)


FAMILIES = (ERNIE_M, ERNIE_PADDLENLP, ERNIE_ORIGINAL, ERNIE_STATIC)
MODEL_TYPES = {"ernie_m": ERNIE_M, "ernie": ERNIE_PADDLENLP, "ernie_gram": ERNIE_PADDLENLP}
"""Model types in PaddleNLP. Configurations of ERNIE's repository have none."""


def _family(fields: Mapping[str, Any], keys: Collection[str]) -> Family:
    """The family of a configuration and of parameters' names.

    Raises:
        ValueError: it is none of those that are read; the error names it where they tell.
    """
    found = [family for family in FAMILIES if family.prefix_in(keys) is not None]
    refuse_relatives(fields, keys, found[0] if found else None)
    kind, architecture = fields.get("model_type"), fields.get("architecture")
    if kind is not None and not (isinstance(kind, str) and kind in MODEL_TYPES):
        raise ValueError(f"model_type is {kind!r}; expected one of {', '.join(MODEL_TYPES)}")
    if kind is not None and (not found or MODEL_TYPES[kind] in found):
        return MODEL_TYPES[kind]
    if not found:
        tables = " or ".join(dict.fromkeys(f"{family.word_table} ({family.form})" for family in FAMILIES))
        raise ValueError(f"the weights hold no {tables}")
    named = [family for family in found if architecture in family.heads]
    # ERNIE-M has no types of tokens.
    typed = any(key.endswith("token_type_embeddings.weight") for key in keys)
    return (named or [family for family in found if (family is not ERNIE_M) == typed] or found)[0]


def _loaded(converted: Converted, config: Any, tokenizer: Any, architecture: str, family: Family) -> Loaded:
    """Build the model of a checkpoint, of which nothing may be missing or too much."""
    head = converted.head
    model_class = getattr(modeling if family is ERNIE_M else transformers, head.class_name)
    try:
        with torch.device("meta"):
            model = model_class(config)
    except (RuntimeError, TypeError, ArithmeticError) as error:  # sizes of no tensor
        raise ValueError(f"the configuration is no model's: {(str(error).splitlines() or [''])[0]}") from error
    expected, found = model.state_dict(), converted.state_dict
    _tie(found, head)
    spare = {name: tensor for name, tensor in found.items() if name not in expected and _is_spare(name, config, family)}
    state = {name: tensor for name, tensor in found.items() if name not in spare}
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
    if family is ERNIE_M:
        model.load_state_dict(state, assign=True)
    else:  # which has buffers that are no parameters
        dtype = next(iter(state.values())).dtype
        model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    kept = {name: tensor for name, tensor in spare.items() if head.keeps_pooler and ".pooler." in name}
    return Loaded(model.eval(), tokenizer, architecture, [name for name in spare if name not in kept], kept)


def _tie(state: dict[str, Tensor], head: Head) -> None:
    """Give parameters that repeat others the others' values.

    Raises:
        ValueError: the file holds other values.
    """
    for name, source in head.tied.items():
        if source in state:
            if name in state and not torch.equal(state[name], state[source]):
                raise ValueError(f"{name} has other values than {source}; expected the same")
            state[name] = state[source]


def _is_spare(name: str, config: Any, family: Family) -> bool:
    """True for a parameter that a class may have no place for."""
    unused = family is not ERNIE_M and not config.use_task_id
    return name.startswith(f"{family.prefix}pooler.") or (unused and "embeddings.task_type_embeddings." in name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} must hold an object, got {type(content).__name__}")
    return content


def _read_config(folder: Path) -> dict[str, Any]:
    names = ("config.json", "model_config.json", "ernie_config.json")
    for name in names:
        if (folder / name).is_file():
            return flatten_config(_read_json(folder / name))
    raise FileNotFoundError(f"{str(folder)!r} holds no configuration; expected {', '.join(names[:-1])} or {names[-1]}")


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


def _read_folder(folder: Path, fields: dict[str, Any], converted: Converted, family: Family) -> tuple[Any, Any]:
    """The configuration and the tokenizer."""
    state, head = converted.state_dict, converted.head
    file = folder / "tokenizer_config.json"
    options = _read_json(file) if file.is_file() else {}
    if family is ERNIE_M:
        pieces = ernie_m_tokenizer(folder, options)
        return ernie_m_config(fields, state, head, pieces.pad_token_id), pieces
    words = next(tensor for name, tensor in state.items() if name.endswith("word_embeddings.weight"))
    tokenizer = ernie_tokenizer(folder, options, len(words))
    pad_token_id = fields.get("pad_token_id") or 0 if tokenizer is None else tokenizer.pad_token_id
    return ernie_config(fields, state, head, family, pad_token_id), tokenizer


LAYER_INDEX = re.compile(r"\.layers?\.([0-9]+)\.")
"""Number of a layer in the name of a parameter here."""


def _check_num_layers(fields: Mapping[str, Any], names: Collection[str]) -> None:
    layers = {match[1] for match in map(LAYER_INDEX.search, names) if match}
    if fields.get("num_hidden_layers") not in (None, len(layers)):
        raise ValueError(f"num_hidden_layers is {fields['num_hidden_layers']!r}, and the weights hold {len(layers)}")
