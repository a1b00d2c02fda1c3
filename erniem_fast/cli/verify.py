"""Verify a checkpoint: what it holds, and the padding-free model against the padded one on real text.

The padded one is `reference` for ErnieM, and transformers' own model for every other family.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from .. import modeling, reference
from ..configuration import ErnieMConfig
from ..explain import explain
from ..inference.loading import (
    Loaded,
    further_in_layers,
    has_tokenizer,
    listing,
    load,
    load_config,
    load_tokenizer,
    model_class,
)
from ..inference.texts import TextTokens
from ..modeling import ErnieMModel
from ..padding_free import padding_free, restore

HEADS = [name for name in reference.__all__ if name.startswith("ErnieMFor")]
PER_SEQUENCE = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
"""Endings of the heads with logits for each sequence; the others have them for each token."""
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


def sample() -> list[tuple[str, str]]:
    """The real text shipped with the package: 96 documents of 1 to 500 tokens as (language, text)."""
    lines = (files("erniem_fast") / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").strip().split("\n")
    return [(document["lang"], document["text"]) for document in map(json.loads, lines)]


def pad(sequences: list[Any], pad_id: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad token id sequences on the right: (batch, longest) input_ids and attention_mask, int64."""
    rows = [torch.as_tensor(sequence, dtype=torch.int64) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id or 0)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def reference_of(model: Any) -> Any:
    """Build the padded model on a padding-free one's own parameters, shared rather than copied.

    Args:
        model: any class of `modeling`, or a model that `padding_free` changed. Its mode (training or eval) is taken
            over.
    """
    if not isinstance(model.config, ErnieMConfig):
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        return restore(copy.deepcopy(model, shared))
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
        name: name of the output.
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
    """Run the padding-free model and the padded one on one padded batch, and compare all they return.

    Args:
        model, plain: models of the same class, with the same parameters, in eval mode.
        sequences: token ids, special tokens included, of different lengths.
    """
    ids, mask = pad(sequences, model.config.pad_token_id, model.device)
    arguments = {"input_ids": ids, "attention_mask": mask}
    class_name = type(model).__name__
    if class_name.endswith("ForMultipleChoice"):
        arguments = {name: value[None] for name, value in arguments.items()}
    fast, slow = (_outputs(m, arguments) for m in (model, plain))
    differences = []
    for name, expected in slow.items():
        given = fast[name]
        by_sequence = name == "pooler_output" or (name == "logits" and class_name.endswith(PER_SEQUENCE))
        if expected.shape[:2] == mask.shape and not by_sequence:
            given, expected = given[mask.bool()], expected[mask.bool()]
        given, expected = given.float(), expected.float()
        largest = (given - expected).abs().max().item()
        differences.append(Difference(name.replace("_", " "), largest, expected.abs().max().item()))
    return differences


@torch.inference_mode()
def _outputs(model: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model returns when nothing more is asked for, and its last hidden states."""
    outputs = {name: value for name, value in model(**arguments, return_dict=True).items() if isinstance(value, Tensor)}
    if "last_hidden_state" not in outputs:
        # A second call: heads that score sequences compute fewer rows where nobody asks for all.
        states = model(**arguments, output_hidden_states=True, return_dict=True).hidden_states
        outputs["last_hidden_state"] = states[-1]
    return outputs


def has_base_sizes(config: ErnieMConfig) -> bool:
    """True if this may be the public ernie-m-base: its sizes, whatever the weights."""
    return all(getattr(config, name) == value for name, value in BASE_SIZES.items())


def base_differences(model: Any, plain: Any) -> tuple[float, float]:
    """Largest differences of the padding-free encoder and of the reference from `BASE_VALUES`.

    Row 1 is left out: id 1 is [PAD], and without a mask the padding-free model gives zeros for it.
    """
    ids = torch.arange(6, device=model.device)[None]
    expected = torch.tensor(BASE_VALUES, device=model.device)
    with torch.inference_mode():
        fast, slow = (m.base_model(ids, return_dict=True).last_hidden_state[0, :3, :3].float() for m in (model, plain))
    return (fast - expected)[[0, 2]].abs().max().item(), (slow - expected).abs().max().item()


def verify(name: str, device: torch.device, say: Callable[[str], None]) -> list[str]:
    """Report what a checkpoint holds and how it is computed, and compare the padding-free model with the padded one.

    Args:
        name: folder of the checkpoint, or its id on the Hub.
        device: where both models run, in float32.
        say: takes the report, line by line.

    Returns:
        Problems: parameters without weights, weights without parameters, and outputs in which the models differ.

    Raises:
        InputError: no checkpoint that can be read, or a tokenizer of another vocabulary; ErnieM must have one.
    """
    config = load_config(name, any_family=True)
    ours = isinstance(config, ErnieMConfig)
    tokenizer = load_tokenizer(name, config) if ours or has_tokenizer(name) else None
    named = next(iter(config.architectures or []), "no class")
    cls = getattr(modeling, named) if named in HEADS else model_class(config, named)
    loaded = load(name, cls, "auto")
    model = padding_free(loaded.model)
    most = model.base_model.limits.max_tokens
    problems = _summarise(name, named, most, tokenizer, loaded, say)
    model.float().to(device)
    say("")
    for line in explain(model).splitlines():
        say(line)

    plain = reference_of(model)
    padded, theirs = ("the reference", "the reference's") if ours else ["transformers' own"] * 2
    texts = [text for _, text in sample()[:12]]
    # A masked LM's logits are 250,002 a token.
    texts = sorted(texts, key=len)[:4] if model.get_output_embeddings() is not None else texts
    rows = TextTokens(tokenizer, most).tokenize(texts) if tokenizer else []
    sequences = [row.ids for row in rows] or _random_ids(texts, config, most)
    lengths = [len(sequence) for sequence in sequences]
    say("")
    say(
        f"Padding-free model against {padded}, float32 on {device}, "
        f"{len(texts)} {'texts' if tokenizer else 'random texts'} of {min(lengths)} to {max(lengths)} tokens:"
    )
    for difference in compare(model, plain, sequences):
        verdict = "same" if difference.accepted else "DIFFERENT"
        say(
            f"  {difference.name:<20}{verdict:<10} largest difference {difference.largest:.1e} "
            f"(largest value {difference.magnitude:.3g})"
        )
        if not difference.accepted:
            problems.append(f"the padding-free model's {difference.name} differs from {theirs}")

    if not ours:
        return problems
    say("")
    if not has_base_sizes(config):
        say("Known values of the public ernie-m-base: not checked, the sizes are others.")
        return problems
    say(f"Known values of the public ernie-m-base (a fine-tuned model does not match), within {BASE_TOLERANCE}:")
    for name, largest in zip(("padding-free", "reference"), base_differences(model, plain), strict=True):
        verdict = "match" if largest <= BASE_TOLERANCE else "do not match"
        say(f"  {name:<20}{verdict:<14} largest difference {largest:.1e}")
    return problems


def _summarise(
    name: str, named: str, max_tokens: int, tokenizer: Any, loaded: Loaded, say: Callable[[str], None]
) -> list[str]:
    """Report the checkpoint's sizes and keys, and return its problems."""
    config, cls = loaded.model.config, type(loaded.model).__name__
    also = "" if named == cls else f" (config.json names {named})"
    rows = {
        "checkpoint": name,
        "class": cls + also,
        "parameters": f"{loaded.model.num_parameters():,} in {str(loaded.model.dtype).removeprefix('torch.')}",
        "layers": f"{config.num_hidden_layers}, hidden {config.hidden_size}, heads {config.num_attention_heads}, "
        f"intermediate {_intermediate_size(config)}",
        "max. tokens": str(max_tokens),
        "vocabulary": f"{config.vocab_size:,} in the model, "
        + (f"{len(tokenizer):,} in the tokenizer" if tokenizer else "no tokenizer"),
        "missing keys": listing(loaded.missing),
        "unexpected keys": listing(loaded.unexpected),
        "mismatched keys": listing(loaded.mismatched),
    }
    for title, value in rows.items():
        say(f"{title:<17}{value}")
    problems = []
    lacking = _without_pooler(loaded.missing) + loaded.mismatched
    if lacking:
        problems.append(f"the weights lack {len(lacking)} parameters, which are random")
    # Heads that transformers drops on purpose, such as BERT's next sentence in a masked LM, are no problem of theirs.
    keys = further_in_layers(loaded) if named == cls and not isinstance(config, ErnieMConfig) else loaded.unexpected
    surplus = _without_pooler(keys)
    if surplus:
        problems.append(f"the weights hold {len(surplus)} parameters that {cls} lacks: {listing(surplus)}")
    return problems


def _random_ids(texts: list[str], config: Any, max_tokens: int) -> list[Tensor]:
    """Ids of about as many tokens as the texts have, for a model without a tokenizer; the same in every run."""
    generator = torch.Generator().manual_seed(0)
    pad_id = config.pad_token_id or 0
    rows = [
        torch.randint(config.vocab_size - 1, (min(2 + len(text) // 4, max_tokens),), generator=generator)
        for text in texts
    ]
    return [row + (row >= pad_id) for row in rows]


def _intermediate_size(config: Any) -> int:
    """Width of the feed-forward blocks, by DistilBERT's name and by XLM's rule, too."""
    named = (getattr(config, name, None) for name in ("intermediate_size", "hidden_dim"))
    return next((size for size in named if size is not None), 4 * config.hidden_size)


def _without_pooler(keys: list[str]) -> list[str]:
    """Keys outside the pooler, which early uploads lack, and which most uses of the model do without."""
    return [key for key in keys if ".pooler." not in f".{key}"]
