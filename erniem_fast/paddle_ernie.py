"""What folders of ERNIE 1.0, 2.0, 3.0, Tiny and Gram zh say besides their weights: configuration and vocabulary.

Also which relatives are something else: `refuse_relatives`.
"""

import re
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import BertTokenizer, ErnieConfig

from .paddle_names import Family, Head

LAYER_NORM_EPS = 1e-5
"""Paddle's default, with which the models were trained."""


@dataclass(frozen=True)
class Relative:
    """A family that ERNIE's classes do not compute.

    Attributes:
        name: its name.
        reason: what it does otherwise.
        classes: pattern of its classes and model types.
        fields: fields of configurations that only it sets.
        keys: pattern of parameters that only it has.
    """

    name: str
    reason: str
    classes: str
    fields: tuple[str, ...]
    keys: str


NEVER = r"(?!)"
RELATIVES = (
    Relative(
        name="ERNIE-Gram en",
        reason="adds a learned bias for each distance to its attention scores",
        classes=NEVER,
        fields=("rel_pos_size",),
        keys=r"\brel_pos_",
    ),
    Relative(
        name="ERNIE-Doc",
        reason="attends to hidden states of the text before, by relative position",
        classes=r"ernie_?doc",
        fields=("memory_len",),
        keys=r"(\b|_)r_[wrt]_bias\b|\bpre_encoder_r_|\br_proj\.",
    ),
    Relative(
        name="ERNIE-ViL",
        reason="reads images",
        classes=r"ernie_?vil",
        fields=("v_hidden_size", "vision_config"),
        keys=r"\bimage_(emb|loc)\b|\bvl_pre_encoder|\bvision_model\.",
    ),
    Relative(
        name="UNIMO",
        reason="generates text, and counts positions from the first token that is no padding",
        classes=r"unimo",
        fields=(),
        keys=r"\bunimo\.",
    ),
    Relative(
        name="ERNIE-Sage",
        reason="sums over the neighbours in a graph of texts",
        classes=r"ernie_?sage",
        fields=(),
        keys=r"erniesage|graphsage|\bneigh_linear\.",
    ),
    Relative(
        name="ERNIE-Gen",
        reason="generates text, where a token sees the source and the target before it",
        classes=r"ernie_?gen|ernie.*ForGeneration",
        fields=("role_type_size", "turn_type_size"),
        keys=r"\b(role|turn)_embedding\b",
    ),
)


def refuse_relatives(fields: Mapping[str, Any], keys: Collection[str], family: Family | None) -> None:
    """Raise a ValueError that names the family if a configuration or parameters are those of a relative.

    Args:
        fields: the configuration, flattened.
        keys: the parameters' names in Paddle.
        family: that of the names; None if there is no table of them.
    """
    classes = [str(fields[name]) for name in ("architecture", "model_type") if fields.get(name)]
    for relative in RELATIVES:
        if (
            any(re.search(relative.classes, name, re.IGNORECASE) for name in classes)
            or any(fields.get(name) for name in relative.fields)
            or any(re.search(relative.keys, key) for key in keys)
        ):
            _refuse(relative)
    for name in ("emb_size", "embedding_size"):
        if fields.get(name) not in (None, fields.get("hidden_size")):
            raise ValueError(
                f"{name} is {fields[name]!r} and hidden_size {fields.get('hidden_size')!r}; "
                "expected tables as wide as the layers"
            )
    if family is not None and family.form != "PaddleNLP" and _generates(keys, family):
        _refuse(RELATIVES[-1])


def _refuse(relative: Relative) -> None:
    raise ValueError(
        f"it is {relative.name}, which {relative.reason}; expected ERNIE-M, or ERNIE 1.0, 2.0, 3.0, Tiny or Gram zh"
    )


def _generates(keys: Container[str], family: Family) -> bool:
    """True for the head of masked LM without a pooler: only ERNIE-Gen is built so."""
    whole = family.parameters("", family.heads["ErnieForMaskedLM"])
    head = any(key in keys for key, parameter in whole.items() if parameter.name.startswith("cls."))
    pooler = any(key in keys for key, parameter in whole.items() if ".pooler." in parameter.name)
    return head and not pooler


REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
FIELDS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range",
    "intermediate_size", "type_vocab_size", "task_type_vocab_size", "classifier_dropout", "id2label", "label2id",
)  # fmt: skip
ALIASES = {
    "sent_type_vocab_size": "type_vocab_size",
    "classifier_dropout_prob": "classifier_dropout",
    "dropout": "classifier_dropout",
}
"""Names of fields in ernie_config.json and in older files of PaddleNLP."""
ACTIVATIONS = ("relu", "gelu")


def ernie_config(
    fields: Mapping[str, Any], state: Mapping[str, Tensor], head: Head, family: Family, pad_token_id: int
) -> ErnieConfig:
    """Configuration of transformers for a checkpoint of ERNIE.

    Sizes that the file leaves to Paddle's classes are those of the weights.

    Args:
        fields: the file's, flattened.
        state: parameters under transformers' names.
        head: the class that they are of.
        family: the names that they had.
        pad_token_id: of the vocabulary.

    Raises:
        ValueError: a field is missing, of another type, or says what transformers' ERNIE does not compute.
    """
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(sorted(missing))}")
    activation = fields["hidden_act"]
    if activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    sizes = {
        "max_position_embeddings": "embeddings.position_embeddings.weight",
        "type_vocab_size": "embeddings.token_type_embeddings.weight",
        "task_type_vocab_size": "embeddings.task_type_embeddings.weight",
        "intermediate_size": "encoder.layer.0.intermediate.dense.bias",
    }
    bare = {name.removeprefix(family.prefix): tensor for name, tensor in state.items()}
    taken: dict[str, Any] = {field: len(bare[name]) for field, name in sizes.items() if name in bare}
    taken |= {ours: fields[name] for name, ours in ALIASES.items() if fields.get(name) is not None}
    taken |= {name: fields[name] for name in (*REQUIRED, *FIELDS) if fields.get(name) is not None}
    if fields.get("sent_type_vocab_size"):  # ERNIE's repository asks for it first
        taken["type_vocab_size"] = fields["sent_type_vocab_size"]
    use_task_id = fields.get("use_task_id")
    if use_task_id is None:  # PaddleNLP has the table where it is used, the repository's files say what is used
        use_task_id = family.form == "PaddleNLP" and sizes["task_type_vocab_size"] in bare
    if use_task_id and fields.get("task_id"):
        raise ValueError(f"task_id is {fields['task_id']!r}; expected 0, transformers' default")
    counted = state.get(f"{head.counted}.bias")
    if counted is not None and "id2label" not in taken:
        taken["num_labels"] = len(counted)
    epsilon = fields.get("epsilon") or LAYER_NORM_EPS
    try:
        return ErnieConfig(use_task_id=use_task_id, layer_norm_eps=epsilon, pad_token_id=pad_token_id, **taken)
    except (StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"the configuration is not ERNIE's: {error}") from error


SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
WORD_START, CONTINUATION = "\u2581", "##"
"""What begins a piece of SentencePiece that begins a word, and a piece of BERT's kind that doesn't."""


def ernie_tokenizer(folder: Path, fields: Mapping[str, Any], vocab_size: int) -> BertTokenizer | None:
    """Tokenizer of BERT's kind for a folder's vocab.txt; None for ERNIE-Tiny's, which is of another kind.

    Args:
        folder: with vocab.txt: a token a line, in files of ERNIE's repository with its id behind a tab.
        fields: of tokenizer_config.json.
        vocab_size: rows of the word table.

    Raises:
        OSError: vocab.txt can't be read.
        ValueError: it is not UTF-8, is longer than the word table, or lacks a special token.
    """
    lines = (folder / "vocab.txt").read_bytes().decode("utf-8").split("\n")  # UnicodeDecodeError is a ValueError
    tokens = [line.rstrip("\r").split("\t")[0] for line in (lines[:-1] if lines[-1] == "" else lines)]
    pieces, continuations = (sum(token.startswith(mark) for token in tokens) for mark in (WORD_START, CONTINUATION))
    if pieces > continuations:
        return None
    if len(tokens) > vocab_size:
        raise ValueError(f"vocab.txt holds {len(tokens):,} tokens, and the word table {vocab_size:,} rows")
    special = {
        name: fields[name] if isinstance(fields.get(name), str) else token for name, token in SPECIAL_TOKENS.items()
    }
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in special.values() if token not in vocab]
    if missing:
        raise ValueError(f"vocab.txt lacks {', '.join(missing)}")
    lower = fields.get("do_lower_case")
    return BertTokenizer(vocab=vocab, do_lower_case=lower if isinstance(lower, bool) else True, **special)
