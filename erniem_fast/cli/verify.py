"""Checkpoint folders: loading them with one-line errors, and verifying them against the reference model."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from .. import modeling, reference
from ..configuration import ErnieMConfig
from ..inference.embed import InputError, pad, tokenize
from ..modeling import ErnieMModel
from ..tokenization import VOCAB_FILES_NAMES, ErnieMTokenizer

CHECKPOINT = "a folder with config.json, the weights, vocab.txt and sentencepiece.bpe.model"
HEADS = [name for name in reference.__all__ if name.startswith("ErnieMFor")]
PER_SEQUENCE = ("ErnieMForSequenceClassification", "ErnieMForMultipleChoice")
"""Heads with logits for each sequence; the others have them for each token."""
TOLERANCE = 1e-4
"""Largest difference between the models in float32, as a share of the tensor's largest magnitude (at least 1)."""
BASE_SIZES = {
    "vocab_size": 250002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
}
BASE_VALUES = ((-0.0012, 0.1245, -0.0214), (-0.0742, 0.0244, -0.0771), (-0.0333, 0.1164, -0.1554))
"""transformers' integration test of the public ernie-m-base: last_hidden_state[0, :3, :3] of the ids 0 to 5."""
BASE_TOLERANCE = 1e-3


def load_config(folder: Path) -> ErnieMConfig:
    """The configuration of a checkpoint's folder.

    Raises:
        InputError: there is no such folder, or no ErnieM checkpoint in it.
    """
    problem = None
    if not os.path.isdir(folder):  # unlike Path's, it raises nothing
        problem = "is not a folder" if os.path.exists(folder) else "no such folder"
    elif not os.path.isfile(folder / "config.json"):
        problem = "holds no checkpoint (no config.json)"
    elif not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        problem = "holds no weights (no .safetensors, no .bin)"
    if problem:
        raise InputError(f"--model {str(folder)!r}: {problem}; expected {CHECKPOINT}")
    with _as_input_error(f"--model {str(folder)!r}: config.json can't be read"):
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if kind != "ernie_m":
            raise InputError(f"--model {str(folder)!r}: config.json has model_type {kind!r}; expected 'ernie_m'")
        return ErnieMConfig.from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path, config: ErnieMConfig) -> ErnieMTokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises:
        InputError: there is none, or its vocabulary is not the model's.
    """
    for name in VOCAB_FILES_NAMES.values():
        if not os.path.isfile(folder / name):
            raise InputError(f"--model {str(folder)!r}: holds no tokenizer (no {name}); expected {CHECKPOINT}")
    with _as_input_error(f"--model {str(folder)!r}: the tokenizer can't be read"):
        tokenizer = ErnieMTokenizer.from_pretrained(folder, local_files_only=True)
    tokens, rows = len(tokenizer), config.vocab_size
    # Some pad the model's table to a multiple of 8 or more; anything else is another vocabulary.
    padded = rows % 8 == 0 and rows - tokens < 128
    if tokens > rows or (tokens < rows and not padded):
        raise InputError(
            f"--model {str(folder)!r}: the tokenizer has {tokens} tokens, the model's vocab_size is {rows}; "
            f"expected the same vocabulary for both"
        )
    return tokenizer


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's weights in a model.

    Attributes:
        model: of `modeling`, in eval mode.
        missing: parameters that the weights don't hold; they are random.
        unexpected: weights that the model has no parameter for.
        mismatched: weights of another shape; the parameters are random.
    """

    model: Any
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def load(folder: Path, cls: Any, dtype: torch.dtype | str, **options: Any) -> Loaded:
    """A checkpoint in a class of `modeling`, whatever its weights lack.

    Raises:
        InputError: the weights can't be read.
    """
    with _as_input_error(f"--model {str(folder)!r}: the weights can't be read"):
        model, info = cls.from_pretrained(
            folder,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
    mismatched = sorted(f"{name} {tuple(given)} for {tuple(wanted)}" for name, given, wanted in info["mismatched_keys"])
    missing = sorted(set(info["missing_keys"]) - {name for name, *_ in info["mismatched_keys"]})
    return Loaded(model.eval(), missing, sorted(info["unexpected_keys"]), mismatched)


def load_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> ErnieMModel:
    """The padding-free encoder of a checkpoint, without its pooler and head, in eval mode.

    Raises:
        InputError: weights can't be read, are missing, or have other shapes than config.json says.
    """
    loaded = load(folder, ErnieMModel, dtype, add_pooling_layer=False)
    for problem, keys in (("lack", loaded.missing), ("hold another shape of", loaded.mismatched)):
        if keys:
            # Such parameters are random now: better no vectors than those.
            raise InputError(
                f"--model {str(folder)!r}: the weights {problem} {_listing(keys)}; "
                f"expected every parameter of the encoder in config.json's sizes"
            )
    return loaded.model.to(device)


@contextmanager
def _as_input_error(what: str) -> Iterator[None]:
    """Files from outside break in any way; whatever their readers raise becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} ({reason}); expected {CHECKPOINT}") from error


def sample() -> list[tuple[str, str]]:
    """The real text shipped with the package: 96 documents of 1 to 500 tokens as (language, text)."""
    lines = (files("erniem_fast") / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").strip().split("\n")
    return [(document["lang"], document["text"]) for document in map(json.loads, lines)]


def reference_of(model: Any) -> Any:
    """The padded reference with a padding-free model's own parameters, shared rather than copied.

    Args:
        model: any class of `modeling`. Its mode (training or eval) is taken over.
    """
    cls = getattr(reference, type(model).__name__)
    options = {"add_pooling_layer": model.pooler is not None} if isinstance(model, ErnieMModel) else {}
    with torch.device("meta"):
        plain = cls(model.config, **options)
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.train(model.training)


@dataclass(frozen=True)
class Difference:
    """One output of both models, at real positions.

    Attributes:
        name: of the output.
        largest: largest absolute difference; NaN where either model gives NaN.
        magnitude: largest magnitude of the reference.
    """

    name: str
    largest: float
    magnitude: float

    @property
    def accepted(self) -> bool:
        return self.largest <= TOLERANCE * max(1.0, self.magnitude)


def compare(model: Any, plain: Any, sequences: list[Any]) -> list[Difference]:
    """Run the padding-free model and the reference on one padded batch, and compare all they return.

    Args:
        model, plain: of the same class, with the same parameters, in eval mode.
        sequences: token ids, special tokens included, of different lengths.
    """
    ids, mask = pad(sequences, model.config.pad_token_id, model.device)
    arguments = {"input_ids": ids, "attention_mask": mask}
    class_name = type(model).__name__
    if class_name == "ErnieMForMultipleChoice":
        arguments = {name: value[None] for name, value in arguments.items()}
    with torch.inference_mode():
        outputs = [m(**arguments, output_hidden_states=True, return_dict=True) for m in (model, plain)]
    fast, slow = ({**output, "hidden_states": output.hidden_states[-1]} for output in outputs)
    differences = []
    for name, expected in slow.items():
        if name == "last_hidden_state":  # the last of hidden_states
            continue
        given = fast[name]
        if name != "pooler_output" and not (name == "logits" and class_name in PER_SEQUENCE):
            given, expected = given[mask.bool()], expected[mask.bool()]
        given, expected = given.float(), expected.float()
        largest = (given - expected).abs().max().item()
        differences.append(Difference(name.replace("_", " "), largest, expected.abs().max().item()))
    return differences


def has_base_sizes(config: ErnieMConfig) -> bool:
    """Whether this may be the public ernie-m-base: its sizes, whatever the weights."""
    return all(getattr(config, name) == value for name, value in BASE_SIZES.items())


def base_differences(model: Any, plain: Any) -> tuple[float, float]:
    """Largest differences of the padding-free encoder and of the reference from `BASE_VALUES`.

    Id 1 is [PAD], and without a mask padding: there the padding-free model gives zeros, so that row is left out.
    """
    ids = torch.arange(6, device=model.device)[None]
    expected = torch.tensor(BASE_VALUES, device=model.device)
    with torch.inference_mode():
        fast, slow = (m.base_model(ids, return_dict=True).last_hidden_state[0, :3, :3].float() for m in (model, plain))
    return (fast - expected)[[0, 2]].abs().max().item(), (slow - expected).abs().max().item()


def verify(folder: Path, device: torch.device, say: Callable[[str], None]) -> list[str]:
    """Say what a checkpoint holds, and whether the padding-free model computes on it what the reference computes.

    Args:
        folder: of the checkpoint.
        device: where both models run, in float32.
        say: is given the report, line by line.

    Returns:
        What is wrong, if anything: parameters without weights, and outputs in which the models differ.

    Raises:
        InputError: `folder` holds no checkpoint that can be read, or no tokenizer of the same vocabulary.
    """
    config = load_config(folder)
    tokenizer = load_tokenizer(folder, config)
    named = next(iter(config.architectures or []), "no class")
    loaded = load(folder, getattr(modeling, named) if named in HEADS else ErnieMModel, "auto")
    problems = _summarise(folder, named, len(tokenizer), loaded, say)

    model = loaded.model.float().to(device)
    plain = reference_of(model)
    texts = [text for _, text in sample()[:12]]
    # A masked LM's logits are 250,002 a token.
    texts = sorted(texts, key=len)[:4] if hasattr(model, "lm_head") else texts
    sequences = tokenize(texts, tokenizer, config.max_tokens).sequences
    lengths = [len(sequence) for sequence in sequences]
    say("")
    say(
        f"Padding-free model against the reference, float32 on {device}, "
        f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens:"
    )
    for difference in compare(model, plain, sequences):
        verdict = "same" if difference.accepted else "DIFFERENT"
        say(
            f"  {difference.name:<20}{verdict:<10} largest difference {difference.largest:.1e} "
            f"(largest value {difference.magnitude:.3g})"
        )
        if not difference.accepted:
            problems.append(f"the padding-free model's {difference.name} differs from the reference's")

    say("")
    if not has_base_sizes(config):
        say("Known values of the public ernie-m-base: not checked, the sizes are others.")
        return problems
    say(f"Known values of the public ernie-m-base (a fine-tuned model does not match), within {BASE_TOLERANCE}:")
    for name, largest in zip(("padding-free", "reference"), base_differences(model, plain), strict=True):
        verdict = "match" if largest <= BASE_TOLERANCE else "do not match"
        say(f"  {name:<20}{verdict:<14} largest difference {largest:.1e}")
    return problems


def _summarise(folder: Path, named: str, tokens: int, loaded: Loaded, say: Callable[[str], None]) -> list[str]:
    """Say what the checkpoint is. Returns what is wrong with it."""
    config, cls = loaded.model.config, type(loaded.model).__name__
    also = "" if named == cls else f" (config.json names {named})"
    rows = {
        "checkpoint": str(folder),
        "class": cls + also,
        "parameters": f"{loaded.model.num_parameters():,} in {str(loaded.model.dtype).removeprefix('torch.')}",
        "layers": f"{config.num_hidden_layers}, hidden {config.hidden_size}, heads {config.num_attention_heads}, "
        f"intermediate {config.intermediate_size}",
        "max. tokens": str(config.max_tokens),
        "vocabulary": f"{config.vocab_size:,} in the model, {tokens:,} in the tokenizer",
        "missing keys": _listing(loaded.missing),
        "unexpected keys": _listing(loaded.unexpected),
        "mismatched keys": _listing(loaded.mismatched),
    }
    for name, value in rows.items():
        say(f"{name:<17}{value}")
    # Early uploads lack the pooler, and most uses of the model do without.
    lacking = [key for key in loaded.missing if ".pooler." not in f".{key}"] + loaded.mismatched
    return [f"the weights lack {len(lacking)} parameters, which are random"] if lacking else []


def _listing(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") or "none"
