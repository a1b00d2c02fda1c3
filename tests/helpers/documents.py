"""Real text in 23 languages, and documents of thousands of tokens made of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import erniem_fast
from erniem_fast import ErnieMTokenizer

DEMO_DATA = Path(erniem_fast.__file__).parent / "demo_data" / "texts.jsonl"
TEXTS: list[str] = [json.loads(line)["text"] for line in DEMO_DATA.read_text("utf-8").splitlines()]


def document(tokenizer: ErnieMTokenizer, tokens: int = 4000, texts: Sequence[str] = TEXTS) -> str:
    """Texts joined by white space until there are at least so many tokens."""
    parts, total = [], 0
    for text in texts:
        parts.append(text)
        total += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if total >= tokens:
            return " \n".join(parts)
    raise ValueError(f"the texts have {total} tokens, not {tokens}")
