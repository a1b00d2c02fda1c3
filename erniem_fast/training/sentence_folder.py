"""Files that make a saved encoder and its tokenizer a folder of sentence-transformers, which need not be installed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULES = ("Transformer", "Pooling", "Normalize")


def write_sentence_files(folder: Path, max_length: int) -> None:
    """Write that vectors are the mean of all of a text's tokens, scaled to length 1, and compared by the cosine.

    sentence-transformers 2 to 6 and `Encoder.from_pretrained` read these files.

    Args:
        folder: with config.json of the encoder.
        max_length: most tokens of a text, special tokens included.
    """
    hidden_size = _width(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": index, "name": str(index), "path": paths[name], "type": f"sentence_transformers.models.{name}"}
        for index, name in enumerate(MODULES)
    ]
    _write(folder / "modules.json", listed)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    _write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": hidden_size, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False, "include_prompt": True,
    })  # fmt: skip
    _write(folder / "2_Normalize" / "config.json", {})


def _width(config: Mapping[str, Any]) -> int:
    """Numbers in a hidden state; XLM and DistilBERT have names of their own for it."""
    return int(next(config[name] for name in ("hidden_size", "dim", "emb_dim") if name in config))


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
