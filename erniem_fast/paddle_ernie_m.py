"""What folders of ERNIE-M and UIE-M say besides their weights: configuration and tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .configuration import ErnieMConfig
from .paddle_names import Head
from .tokenization import VOCAB_FILES_NAMES, ErnieMTokenizer

REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range", "classifier_dropout", "id2label",
    "label2id",
)  # fmt: skip
"""Fields that our configuration takes over. Others are PaddleNLP's own, or the weights and the tokenizer tell them."""


def ernie_m_config(
    fields: Mapping[str, Any], state: Mapping[str, Tensor], head: Head, pad_token_id: int
) -> ErnieMConfig:
    """Configuration of a checkpoint of ERNIE-M.

    Args:
        fields: the file's, flattened.
        state: parameters under our names.
        head: the class that they are of.
        pad_token_id: of the vocabulary: PaddleNLP's configuration says 0 by default, which is [CLS].

    Raises:
        ValueError: a field is missing or wrong, or the weights hold no feed-forward.
    """
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(sorted(missing))}")
    taken = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    if "dropout" in fields:  # of the heads, before PaddleNLP's classes took a configuration
        taken.setdefault("classifier_dropout", fields["dropout"])
    # PaddleNLP reads neither of these: its feed-forward is always 4 hidden_size wide, and its classes, made with a
    # number of labels, need not name it.
    widths = [len(value) for key, value in state.items() if key.endswith("linear1.bias")]
    if not widths:
        raise ValueError("the weights lack linear1.bias of every layer")
    taken["intermediate_size"] = widths[0]
    counted = state.get(f"{head.counted}.bias")
    if counted is not None and "id2label" not in taken:
        taken["num_labels"] = len(counted)
    return ErnieMConfig(pad_token_id=pad_token_id, **taken)


def ernie_m_tokenizer(folder: Path, fields: Mapping[str, Any]) -> ErnieMTokenizer:
    """Tokenizer of a folder with vocab.txt.

    Args:
        folder: the folder.
        fields: of tokenizer_config.json.

    Raises:
        OSError: there is no SentencePiece model, or a file can't be read.
        ValueError: a file does not hold what its name promises.
    """
    vocab, pieces = (folder / name for name in VOCAB_FILES_NAMES.values())
    if not pieces.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no tokenizer (no {pieces.name})")
    names = ("do_lower_case", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    options = {name: fields[name] for name in names if isinstance(fields.get(name), str | bool)}
    return ErnieMTokenizer(pieces, vocab, **options)
