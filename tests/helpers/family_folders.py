"""Tiny checkpoints of other families, as plain transformers saves them, with tokenizers of their kinds."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer, XLMTokenizer

from erniem_fast.cli.verify import sample

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "initializer_range": 0.2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Ernie": {"use_task_id": True, "task_type_vocab_size": 3, "type_vocab_size": 4, "hidden_act": "relu"},
    "Roberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "XLMRoberta": {"type_vocab_size": 1, "pad_token_id": 1},
    "Camembert": {"type_vocab_size": 1, "pad_token_id": 1},
    "Data2VecText": {"type_vocab_size": 1, "pad_token_id": 1},
    "Electra": {"embedding_size": 16},
    "DistilBert": {},
    "XLM": {},
}
"""Changes of each family's configuration, by the prefix of its classes."""
RENAMED = {
    "DistilBert": {
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    "XLM": {"hidden_size": "emb_dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
}  # fmt: skip
"""Sizes that go by other names."""
MAX_TOKENS = 40


def tokenizer(family: str) -> Any:
    """Words in pieces of one character, bytes, or characters, by the family's own tokenizer class or its like.

    XLM's needs the package sacremoses.
    """
    if family in ("Roberta", "Data2VecText"):
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        letters = RobertaTokenizer().backend_tokenizer.pre_tokenizer.alphabet()
        vocabulary = {token: index for index, token in enumerate([*specials, *sorted(letters)])}
        return RobertaTokenizer(vocab=vocabulary, merges=[])
    characters = sorted({character for _, text in sample() for character in text.lower() if not character.isspace()})
    if family in ("XLMRoberta", "Camembert"):
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *characters, "<mask>"]
        return XLMRobertaTokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])
    if family == "XLM":
        specials = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{index}>" for index in range(10))]
        tokens = [*specials, *characters, *(f"{one}</w>" for one in characters)]
        with TemporaryDirectory() as folder:
            vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
            merges.write_text("\n", encoding="utf-8")
            return XLMTokenizer(vocabulary, merges)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})


def build(family: str, head: str = "Model", max_tokens: int = MAX_TOKENS, **changes: Any) -> tuple[Any, Any]:
    """A model with fresh random weights, and its tokenizer.

    Args:
        family: a key of `FAMILIES`.
        head: ending of the class.
        max_tokens: most tokens of a sequence.
        changes: further fields of the configuration.
    """
    made = tokenizer(family)
    cls = getattr(transformers, f"{family}{head}")
    sizes = SIZES | {"vocab_size": len(made), "max_position_embeddings": max_tokens}
    fields = sizes | FAMILIES[family] | {"pad_token_id": made.pad_token_id} | changes
    fields = {RENAMED.get(family, {}).get(name, name): value for name, value in fields.items()}
    if "Roberta" in family or family in ("Camembert", "Data2VecText"):  # positions count from pad + 1
        fields["max_position_embeddings"] += fields["pad_token_id"] + 1
    if family == "XLM":  # whose feed-forward blocks are four times as wide as it is
        del fields["intermediate_size"]
    config = cls.config_class(**fields)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, made


def save_family(folder: Path, family: str, head: str = "Model", max_tokens: int = MAX_TOKENS, **changes: Any) -> Path:
    """Save a checkpoint with fresh random weights; arguments are those of `build`."""
    model, made = build(family, head, max_tokens, **changes)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def change_layers(folder: Path, by: int) -> None:
    """Make config.json ask for more or fewer layers than there are weights."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    name = "n_layers" if "n_layers" in config else "num_hidden_layers"
    file.write_text(json.dumps(config | {name: config[name] + by}))
