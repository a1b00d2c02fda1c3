"""The tokenizer of the golden cases, of 16,002 tokens."""

import json
from pathlib import Path
from typing import Any

from erniem_fast.tokenization import ErnieMTokenizer
from helpers.paths import GOLDEN_TOKENIZER

MODEL, VOCAB = GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt"


def build(**options: Any) -> ErnieMTokenizer:
    return ErnieMTokenizer(MODEL, VOCAB, **options)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
