"""README's code runs, and its table is what the result files say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import GOLDEN_TOKENIZER, ROOT

from bench import table
from erniem_fast import ErnieMConfig, ErnieMModel, ErnieMTokenizer

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tokenizer = ErnieMTokenizer(str(GOLDEN_TOKENIZER / "sentencepiece.bpe.model"), str(GOLDEN_TOKENIZER / "vocab.txt"))
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ErnieMModel(ErnieMConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_code_runs(checkpoint: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    assert len(blocks[0].splitlines()) <= 12
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("path/to/ernie-m-base", str(checkpoint)), names)
    assert isinstance(names["output"].last_hidden_state, torch.Tensor)
    assert names["output"].last_hidden_state.shape == (1, sum(map(len, names["rows"])), 32)


def test_table_is_made_from_the_results() -> None:
    assert table.main(["--check", str(ROOT / "README.md")]) == 0
